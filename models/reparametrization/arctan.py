"""Weight compander, read as an arctangent: W = a arctan(V / b), V the trained weight, a and b learned per matrix.

Cakaj et al. 2023 describe a nonlinear function that limits the size of each weight and pushes it away from zero, with
learned parameters. We could not confirm the formula: this one is our reading. |W| < a pi / 2, and small weights are
multiplied by a / b.
"""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.reparametrization.base import REPARAMETRIZATION, Reparametrization, ReparametrizationConfig, linears


class Arctan(nn.Module):
    """Computes a arctan(V / b); a and b are exponentials, so that they stay positive."""

    decays = False

    def __init__(self) -> None:
        super().__init__()
        self.log_a = nn.Parameter(torch.zeros(()))
        self.log_b = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def start(self, weight: torch.Tensor, gain: float, width: float) -> None:
        rms = float(weight.float().square().mean().sqrt())
        b = width * rms if rms > 0 else 1.0
        self.log_b.fill_(math.log(b))
        self.log_a.fill_(math.log(gain * b))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return self.log_a.exp() * torch.arctan(weight / self.log_b.exp())


@REPARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ArctanConfig(ReparametrizationConfig):
    """Every matrix of the blocks is a arctan(V / b) of its trained weight V, elementwise, with learned a and b: a
    reading of the Weight Compander. Cakaj et al. 2023 (Weight Compander, arXiv 2306.16993).

    The formula is not confirmed. Decay acts on V, not on a and b.
    """

    name: Literal["arctan"] = "arctan"
    gain: Annotated[float, Field(gt=0)] = 1.0
    """Initial a / b, the factor of small weights. Above 1 it pushes them away from zero."""
    width: Annotated[float, Field(gt=0)] = 2.0
    """Initial b / RMS of the initial weights: smaller values bend more of them."""

    def build(self, model: Any) -> Reparametrization:
        for name, linear in linears(model):
            if name.startswith("blocks."):
                linear.map = Arctan()
        return Reparametrization()

    def start(self, model: Any) -> None:
        for _, linear in linears(model):
            if isinstance(linear.map, Arctan):
                linear.map.start(linear.weight, self.gain, self.width)

    def keeps_start(self) -> bool:
        return False
