"""Normalization layers and their substitutes, the `norm` axis. All compute in fp32, whatever the input's dtype.

Shape suffixes: ... any leading dimensions, D features.
"""

from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.layers import Linear

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NormConfig(Choice):
    name: str
    normalizes = True  # False for substitutes that do not normalize
    scale_invariant = True  # whether N(c x) = N(x) for c > 0, up to eps

    def build(self, dim: int) -> nn.Module:
        """Returns a module that maps [..., dim] to [..., dim] in fp32."""
        raise NotImplementedError


NORM: Axis[NormConfig] = Axis("norm")


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_D: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x_D.float(), self.weight.shape, self.weight, None, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_D: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x_D.float(), self.weight.shape, self.weight, self.eps)


class SimpleRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), without parameters."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x_D: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x_D.float(), (self.dim,), None, self.eps)


class PreAffine(nn.Module):
    """RMSNorm(scale * x), where the learned scale lets a few channels determine the statistics."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_D: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(self.scale * x_D.float(), self.weight.shape, self.weight, self.eps)


class GatedNorm(RMSNorm):
    """y * sigmoid(W_expand silu(W_squeeze y)), y = RMSNorm(x)."""

    def __init__(self, dim: int, eps: float, rank: int) -> None:
        super().__init__(dim, eps)
        # Not named down and up, which would mark them as matrices of an MLP.
        self.squeeze = Linear(dim, rank)
        self.expand = Linear(rank, dim)

    def forward(self, x_D: torch.Tensor) -> torch.Tensor:
        y_D = super().forward(x_D)
        return y_D * torch.sigmoid(self.expand(F.silu(self.squeeze(y_D))).float())


class DynamicTanh(nn.Module):
    """weight * tanh(alpha x) + bias."""

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
    """(x - mean) / sqrt(var + eps) * weight. Ba et al. 2016; without bias as in Wortsman et al. 2023, Fig. E.8."""

    name: Literal["layernorm"] = "layernorm"
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the variance. Default: Flax's, which the paper uses."""

    def build(self, dim: int) -> nn.Module:
        return LayerNorm(dim, self.eps)


@NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RMSNormConfig(NormConfig):
    """x / sqrt(mean(x^2) + eps) * weight. Zhang & Sennrich 2019."""

    name: Literal["rmsnorm"] = "rmsnorm"
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the mean square."""

    def build(self, dim: int) -> nn.Module:
        return RMSNorm(dim, self.eps)


@NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SimpleRMSNormConfig(NormConfig):
    """x / sqrt(mean(x^2) + eps), without parameters: SRMSNorm. Qin et al. 2023 (TransNormerLLM, arXiv 2307.14995)."""

    name: Literal["srms"] = "srms"
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the mean square."""

    def build(self, dim: int) -> nn.Module:
        return SimpleRMSNorm(dim, self.eps)


@NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PreAffineConfig(RMSNormConfig):
    """RMSNorm(lambda * x) * weight with a learned lambda per channel, initially one.

    Qiu et al. 2026 ("A unified view of attention and residual sinks", arXiv 2601.22966), section 3.3.
    """

    name: Literal["preaffine"] = "preaffine"  # type: ignore[assignment]

    def build(self, dim: int) -> nn.Module:
        return PreAffine(dim, self.eps)


@NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class GatedNormConfig(RMSNormConfig):
    """y * sigmoid(W_up silu(W_down y)) with y = RMSNorm(x): each token scales its own channels.

    Qiu et al. 2026 (arXiv 2601.22966), section 3.4. They state no initialization. Here the init axis fills both
    matrices like all others, so the gate starts near 1/2.
    """

    name: Literal["gated"] = "gated"  # type: ignore[assignment]
    fan_in_follows_width = False  # the fan-in of W_expand is the rank
    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the gate, the number of rows of W_down. Qiu et al. 2026, section 3.4."""

    def build(self, dim: int) -> nn.Module:
        return GatedNorm(dim, self.eps, self.rank)


@NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DynamicTanhConfig(NormConfig):
    """weight * tanh(alpha x) + bias, with one learned number alpha per layer. Zhu et al. 2025 (DyT), algorithm 1.

    Has the paper's bias, although the norms here have none. Omits the learned embedding factor of the paper's LLaMA
    runs (section 5).
    """

    name: Literal["dyt"] = "dyt"
    scale_invariant = False
    alpha: Annotated[float, Field(gt=0)] = 0.5
    """Initial alpha. Zhu et al. 2025, section 4. Their LLaMA runs (section 7) at 7B take 0.8 before attention and 0.2
    elsewhere, and less in wider models."""

    def build(self, dim: int) -> nn.Module:
        return DynamicTanh(dim, self.alpha)


@NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoNormConfig(NormConfig):
    """x in fp32, without normalization. He & Hofmann 2024 train blocks without norms."""

    name: Literal["none"] = "none"
    normalizes = False
    scale_invariant = False

    def build(self, dim: int) -> nn.Module:
        return NoNorm()
