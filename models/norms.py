"""Normalization layers, the `norm` axis. Statistics are taken in fp32 whatever the dtype of the input.

Shape suffixes: ... any leading dimensions, D features.
"""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NormConfig:
    name: str
    scale_invariant: ClassVar[bool] = True  # whether N(c x) = N(x) for c > 0, eps aside

    def build(self, dim: int) -> nn.Module:
        """A module that maps [..., dim] to [..., dim] in fp32."""
        raise NotImplementedError


NORM: Axis[NormConfig] = Axis("norm")


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight, without bias (Wortsman et al. 2023, Fig. E.8). Ba et al. 2016."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_D: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x_D.float(), self.weight.shape, self.weight, None, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight. Zhang & Sennrich 2019."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_D: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x_D.float(), self.weight.shape, self.weight, self.eps)


@NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LayerNormConfig(NormConfig):
    name: Literal["layernorm"] = "layernorm"
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the variance. Flax's default, so the paper's."""

    def build(self, dim: int) -> nn.Module:
        return LayerNorm(dim, self.eps)


@NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RMSNormConfig(NormConfig):
    name: Literal["rmsnorm"] = "rmsnorm"
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the mean square."""

    def build(self, dim: int) -> nn.Module:
        return RMSNorm(dim, self.eps)
