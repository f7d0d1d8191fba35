"""Judges: published claims held against the results of sweeps. Each module of claims/ registers one."""
