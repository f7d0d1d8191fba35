"""Optimizers, the `optimizer` axis. Every module of the package is imported, so a new file registers its optimizer."""

from conf.axis import import_all
from train.optimizers.base import OPTIMIZER, OptimizerConfig

import_all("train.optimizers")

__all__ = ["OPTIMIZER", "OptimizerConfig"]
