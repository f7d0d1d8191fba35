"""Training losses, the `loss` axis. Every file here is imported, so that a loss is registered by being there."""

from train.losses.base import LOSS, LossConfig, Objective, Output, import_losses
from train.losses.fused import cross_entropy_z

import_losses()

__all__ = ["LOSS", "LossConfig", "Objective", "Output", "cross_entropy_z"]
