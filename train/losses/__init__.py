"""Training losses, the `loss` axis. Every file here is imported, so that a loss is registered by being there."""

from conf.axis import import_all
from train.losses.base import LOSS, LossConfig, Objective, Output
from train.losses.fused import cross_entropy_z

import_all("train.losses")

__all__ = ["LOSS", "LossConfig", "Objective", "Output", "cross_entropy_z"]
