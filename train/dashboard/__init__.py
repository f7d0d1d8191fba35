"""Builds the W&B workspace and report of a sweep in code."""
