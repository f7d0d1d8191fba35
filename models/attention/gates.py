"""Gates of attention's heads, the `gate` axis: what a head has mixed times sigmoid(f(x)), before the output projection.

x is the input of the attention layer, normed where the placement has a norm there. The sigmoid is fp32.
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
    """sigmoid(score(x)) times the heads; `score` gives [B, T, H G] of [B, T, D]."""

    def __init__(self, heads: int, score: nn.Module) -> None:
        super().__init__()
        self.heads = heads
        self.score = score

    def forward(self, mixed_BHTK: torch.Tensor, x_BTD: torch.Tensor) -> torch.Tensor:
        gate_BTHG = self.score(x_BTD).float().sigmoid().unflatten(-1, (self.heads, -1))
        return mixed_BHTK * gate_BTHG.transpose(1, 2).to(mixed_BHTK.dtype)


class OfSlices(Linear):
    """W_h x_h for each head, x_h the h-th of H slices of x: [..., H I] -> [..., H O]. The weight is [H O, I].

    An init that depends on the fan-out sees that of all heads.
    """

    def __init__(self, heads: int, fan_in: int, fan_out: int, role: Role | None = None) -> None:
        super().__init__(fan_in, heads * fan_out, role)
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight_HOI = self.matrix().unflatten(0, (self.heads, -1))
        y = torch.einsum("...hi,hoi->...ho", x.unflatten(-1, (self.heads, -1)), weight_HOI).flatten(-2)
        return y if self.multiplier == 1.0 else self.multiplier * y


class Biased(nn.Module):
    """score(x) + b, one b a head."""

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
    """Heads enter the output projection as they are mixed. Vaswani et al. 2017, section 3.2.2."""

    name: Literal["none"] = "none"

    def build(self, layer: LayerShape) -> None:
        return None


@GATE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class HeadwiseGate(GateConfig):
    """sigmoid(W x) times the heads, one gate a head and token, W of [H, D] without a bias.

    Qiu et al. 2025 (Gated Attention for Large Language Models, arXiv 2505.06708; qiuzh20/gated_attention): G1, behind
    the mixing, is their best place. W is filled by the init axis, so that gates start around 1/2.
    """

    name: Literal["headwise"] = "headwise"

    def build(self, layer: LayerShape) -> Gate:
        return Gate(layer.heads, Linear(layer.width, layer.heads))


@GATE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ElementwiseGate(GateConfig):
    """sigmoid(W x) times the heads, one gate a feature of each head and token, W of [D, D] without a bias.

    Qiu et al. 2025 (Gated Attention for Large Language Models, arXiv 2505.06708; qiuzh20/gated_attention): as
    `headwise`, with head_dim times as many gates. Qwen3-Next has it.
    """

    name: Literal["elementwise"] = "elementwise"

    def build(self, layer: LayerShape) -> Gate:
        return Gate(layer.heads, Linear(layer.width, layer.width))


@GATE.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class QualcommGate(GateConfig):
    """sigmoid(f_h(x) + b_h) times head h, one gate a head and token, f_h of the head's own slice of x, b_h learned.

    Bondarenko et al. 2023 (Quantizable Transformers, arXiv 2306.12929; Qualcomm-AI-research/outlier-free-transformers):
    a head can then do nothing without logits that grow. Matrices are filled by the init axis, all weights and b decay.
    The authors start b from pi_init with `linear` alone and at random with the others, and their MLP has biases inside;
    here b starts from pi_init always and the MLP has none inside, as all here.
    """

    name: Literal["qualcomm"] = "qualcomm"
    form: Literal["linear", "mlp", "all_features"] = "linear"
    """f_h: linear in the head's slice; an MLP of it with head_dim / 4 ReLUs; or linear in all features of x."""
    pi_init: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Gate at f = 0 before training. 0.25 is of the authors' OPT-125M and OPT-350M."""

    @property
    def fan_in_follows_width(self) -> bool:  # type: ignore[override]
        """A head's slice has the head dimension, which ladders keep."""
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
