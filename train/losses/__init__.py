"""Training losses, the `loss` axis. Every module of the package is imported, so a new file registers its loss."""

from conf.axis import import_all
from train.losses.base import LOSS, LossConfig, Objective, Output
from train.losses.fused import cross_entropy_z

import_all("train.losses")

__all__ = ["LOSS", "LossConfig", "Objective", "Output", "cross_entropy_z"]
