"""Hydra config groups (YAML, one folder per axis) and the typed side of the axes (`conf.axis`)."""
