"""Normalization layers, the `norm` axis, and what stands in for them. All in fp32 whatever the dtype of the input.

Shape suffixes: ... any leading dimensions, D features.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NormConfig:
    name: str
    scale_invariant = True  # whether N(c x) = N(x) for c > 0, eps aside

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


class DynamicTanh(nn.Module):
    """weight * tanh(alpha x) + bias, alpha one learned number a layer. Zhu et al. 2025 (DyT), eq. 1 and algorithm 1.

    With the bias that the paper has, although the norms here have none.
    """

    def __init__(self, dim: int, alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), alpha))
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x_D: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.bias, self.weight, torch.tanh(self.alpha * x_D.float()))


class NoNorm(nn.Module):
    def forward(self, x_D: torch.Tensor) -> torch.Tensor:
        return x_D.float()


@NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LayerNormConfig(NormConfig):
    __doc__ = LayerNorm.__doc__

    name: Literal["layernorm"] = "layernorm"
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the variance. Flax's default, so the paper's."""

    def build(self, dim: int) -> nn.Module:
        return LayerNorm(dim, self.eps)


@NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RMSNormConfig(NormConfig):
    __doc__ = RMSNorm.__doc__

    name: Literal["rmsnorm"] = "rmsnorm"
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the mean square."""

    def build(self, dim: int) -> nn.Module:
        return RMSNorm(dim, self.eps)


@NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DynamicTanhConfig(NormConfig):
    __doc__ = DynamicTanh.__doc__

    name: Literal["dyt"] = "dyt"
    scale_invariant = False
    alpha: Annotated[float, Field(gt=0)] = 0.5
    """Initial alpha. Zhu et al. 2025, section 4; their LLaMA runs take 0.8 before attention and 0.2 elsewhere at
    7B, less in wider models."""

    def build(self, dim: int) -> nn.Module:
        return DynamicTanh(dim, self.alpha)


@NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoNormConfig(NormConfig):
    """x in fp32, without normalization. He & Hofmann 2024 train blocks without."""

    name: Literal["none"] = "none"
    scale_invariant = False

    def build(self, dim: int) -> nn.Module:
        return NoNorm()
