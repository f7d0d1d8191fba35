"""Measurements of trained models, and of short training, that the commands of the same names print."""
