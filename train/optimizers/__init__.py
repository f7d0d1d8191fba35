"""Optimizers, the `optimizer` axis. Every file here is imported, so that an optimizer is registered by being there."""

from conf.axis import import_all
from train.optimizers.base import OPTIMIZER, OptimizerConfig

import_all("train.optimizers")

__all__ = ["OPTIMIZER", "OptimizerConfig"]
