"""Gates of attention heads, the `gate` axis: sigmoid(f(x)) times each head's output, before the output projection.

x is the input of the attention layer, after the placement's norm if it has one there. The sigmoid runs in fp32.
Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width, G gates of a head (1 or K).
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.attention.mixing.base import LayerShape
from models.layers import Linear, Role


class Gate(nn.Module):
    """Multiplies the heads by sigmoid(score(x)); `score` maps [B, T, D] to [B, T, H G]."""

    def __init__(self, heads: int, score: nn.Module) -> None:
        super().__init__()
        self.heads = heads
        self.score = score

    def forward(self, mixed_BHTK: torch.Tensor, x_BTD: torch.Tensor) -> torch.Tensor:
        gate_BTHG = self.score(x_BTD).float().sigmoid().unflatten(-1, (self.heads, -1))
        return mixed_BHTK * gate_BTHG.transpose(1, 2).to(mixed_BHTK.dtype)


class OfSlices(Linear):
    """W_h x_h for each head, where x_h is the h-th of H slices of x: [..., H I] -> [..., H O]. The weight is [H O, I].

    Inits that depend on the fan-out see H O.
    """

    def __init__(self, heads: int, fan_in: int, fan_out: int, role: Role | None = None) -> None:
        super().__init__(fan_in, heads * fan_out, role)
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight_HOI = self.matrix().unflatten(0, (self.heads, -1))
        y = torch.einsum("...hi,hoi->...ho", x.unflatten(-1, (self.heads, -1)), weight_HOI).flatten(-2)
        return y if self.multiplier == 1.0 else self.multiplier * y


class Biased(nn.Module):
    """score(x) + b with one b per head."""

    def __init__(self, score: nn.Module, heads: int, start: float) -> None:
        super().__init__()
        self.score = score
        self.bias = nn.Parameter(torch.full((heads,), start))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.score(x_BTD).float() + self.bias


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class GateConfig(Choice):
    name: str

    def build(self, layer: LayerShape) -> Gate | None:
        raise NotImplementedError


GATE: Axis[GateConfig] = Axis("gate")


@GATE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoGate(GateConfig):
    """No gate: head outputs enter the output projection unchanged. Vaswani et al. 2017, section 3.2.2."""

    name: Literal["none"] = "none"

    def build(self, layer: LayerShape) -> None:
        return None


@GATE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class HeadwiseGate(GateConfig):
    """sigmoid(W x) times the heads, one gate per head and token, W of [H, D] without a bias.

    Qiu et al. 2025 (Gated Attention for Large Language Models, arXiv 2505.06708; qiuzh20/gated_attention). They find
    this position (G1, after the mixing) the best. The init axis fills W, so gates start around 1/2.
    """

    name: Literal["headwise"] = "headwise"

    def build(self, layer: LayerShape) -> Gate:
        return Gate(layer.heads, Linear(layer.width, layer.heads))


@GATE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ElementwiseGate(GateConfig):
    """sigmoid(W x) times the heads, one gate per feature of each head and token, W of [D, D] without a bias.

    Qiu et al. 2025 (Gated Attention for Large Language Models, arXiv 2505.06708; qiuzh20/gated_attention). Like
    `headwise`, with head_dim times as many gates. Used in Qwen3-Next.
    """

    name: Literal["elementwise"] = "elementwise"

    def build(self, layer: LayerShape) -> Gate:
        return Gate(layer.heads, Linear(layer.width, layer.width))


@GATE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class QualcommGate(GateConfig):
    """sigmoid(f_h(x) + b_h) times head h, one gate per head and token, f_h of the head's own slice of x, b_h learned.

    Bondarenko et al. 2023 (Quantizable Transformers, arXiv 2306.12929; Qualcomm-AI-research/outlier-free-transformers).
    The gate lets a head output nothing without growing its logits. The init axis fills the matrices; all weights and b
    decay. Here b always starts from pi_init, and the MLP form has no inner biases. The authors' MLP has them, and they
    start b from pi_init with `linear` only and at random otherwise.
    """

    name: Literal["qualcomm"] = "qualcomm"
    form: Literal["linear", "mlp", "all_features"] = "linear"
    """f_h: linear in the head's slice, an MLP of the slice with head_dim / 4 ReLUs, or linear in all features of x."""
    pi_init: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Initial gate where f = 0. 0.25 is the authors' setting for OPT-125M and OPT-350M."""

    @property
    def fan_in_follows_width(self) -> bool:  # type: ignore[override]
        """Returns False for forms that read a head's slice: its width is the head dimension, which ladders keep
        constant."""
        return self.form == "all_features"

    def build(self, layer: LayerShape) -> Gate:
        heads, dim = layer.heads, layer.head_dim
        hidden = max(1, dim // 4)
        score: nn.Module
        match self.form:
            case "linear":
                score = OfSlices(heads, dim, 1)
            case "mlp":
                score = nn.Sequential(OfSlices(heads, dim, hidden), nn.ReLU(), OfSlices(heads, hidden, 1))
            case "all_features":
                score = Linear(layer.width, heads)
        return Gate(heads, Biased(score, heads, math.log(self.pi_init / (1 - self.pi_init))))
