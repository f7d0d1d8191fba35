"""Norm loss: pulls every row of a matrix towards unit length. Georgiou et al. 2021."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.reparametrization.base import REPARAMETRIZATION, Reparametrization, ReparametrizationConfig, linears


def gradient(weight_OI: torch.Tensor, factor: float) -> torch.Tensor:
    """Returns the gradient of factor (1 - |w|)^2 summed over rows: 2 factor (1 - 1/|w|) w per row, 0 for zero rows."""
    norm_O1 = weight_OI.norm(dim=1, keepdim=True)
    return 2 * factor * (weight_OI - weight_OI / norm_O1.clamp_min(1e-12))


class NormLoss(Reparametrization):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def after_step(self, model: Any, step: int, lr: float) -> None:
        for _, linear in linears(model):
            linear.weight.sub_(lr * gradient(linear.weight, self.factor))


@REPARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NormLossConfig(ReparametrizationConfig):
    """Rows of matrices are pulled to unit length by factor (1 - |w|)^2, not to zero by decay. Georgiou et al. 2021.

    Decoupled from the optimizer, w <- w - 2 lr factor (1 - 1/|w|) w, as in Ranger21 (lessw2020/Ranger21). lr is the
    schedule's, without the parametrization's multiplier. Rows shorter than one grow, unlike with decay. Acts on all
    matrices, the head included. They never decay, whatever optimizer.decay says; embeddings and vectors do.
    """

    name: Literal["norm_loss"] = "norm_loss"
    pulls = True
    factor: Annotated[float, Field(gt=0)] = 0.01
    """lambda. At the default learning rate, long rows then shrink by 2e-4 per step, similar to weight decay (1e-4).
    Ranger21's default is 1e-4."""

    def build(self, model: Any) -> Reparametrization:
        for _, linear in linears(model):
            linear.decays = False
        return NormLoss(self.factor)
