"""TransNormerLLM's attention: silu features, a fixed decay per head, no denominator, a norm and a linear gate.

    w_ij = silu(q_i) silu(k_j) exp(-s_h (i - j));    out = SRMSNorm(sum_j<=i w_ij v_j) * W_u x

SRMSNorm(x) = x / rms(x), without parameters, over all heads together (eps 1e-6). Qin et al. 2023 (TransNormerLLM, arXiv
2307.14995), eqs. 9 to 14. The slopes, by head h = 1 ... H and block l = 0 ... L - 1 of L:

    code     s = 2^(-8 h / H) (1 - l / (L - 1) + 1e-5), of the released models and the default; one block: 2^(-8 h / H)
    paper    s = (8 h / H) (1 - (l + 1) / L): the last block doesn't decay

They are constants, since learned ones gave NaN in the paper. lrpe multiplies each product q_d k_d by
cos(theta_d (i - j)): features become x cos(theta t) and x sin(theta t), with a learned theta per head and feature that
starts at 10000^(-2 d / K), d the index over all heads and K their width together. `first`, the paper's form, has it in
the first block only.

Their models also have norm=srms and mlp=sglu, position=none qk_norm=none, and embeddings times sqrt(width). Weights are
signed, and their rows have no fixed sum.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.linear import LinearAttention
from models.layers import Linear
from models.probes import full_precision

EPS = 1e-6
Slopes = Literal["code", "paper"]


def slopes(heads: int, block: int, depth: int, kind: Slopes) -> torch.Tensor:
    """Returns s, [H]."""
    head_H = torch.arange(1, heads + 1, dtype=torch.float32)
    if kind == "paper":
        return 8 * head_H / heads * (1 - (block + 1) / depth)
    return 2.0 ** (-8 * head_H / heads) * (1 - block / max(1, depth - 1) + 1e-5)


class TransNormer(LinearAttention):
    normalized = False
    slope_H: torch.Tensor

    def __init__(self, layer: LayerShape, kind: Slopes, lrpe: bool) -> None:
        super().__init__(layer.scale)
        self.register_buffer("slope_H", slopes(layer.heads, layer.block, layer.depth, kind), persistent=False)
        self.gate = Linear(layer.width, layer.heads * layer.head_dim)
        self.theta_HK = None
        if lrpe:
            total = layer.heads * layer.head_dim
            theta = 10_000.0 ** (-2 * torch.arange(total, dtype=torch.float32) / total)
            self.theta_HK = nn.Parameter(theta.unflatten(0, (layer.heads, layer.head_dim)))

    def features(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        q_BHTK, k_BHTK = F.silu(inputs.q_BHTK.float()), F.silu(inputs.k_BHTK.float())
        if self.theta_HK is None:
            return q_BHTK, k_BHTK
        position_T1 = torch.arange(q_BHTK.shape[-2], device=q_BHTK.device, dtype=torch.float32)[:, None]
        angle_HTK = position_T1 * self.theta_HK[:, None]
        cos_HTK, sin_HTK = angle_HTK.cos(), angle_HTK.sin()
        return torch.cat([q_BHTK * cos_HTK, q_BHTK * sin_HTK], -1), torch.cat([k_BHTK * cos_HTK, k_BHTK * sin_HTK], -1)

    def log_decay(self, inputs: Inputs) -> torch.Tensor:
        batch, heads, length, _ = inputs.q_BHTK.shape
        return -self.slope_H[:, None].expand(batch, heads, length)

    def finish(self, mixed_BHTK: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        assert x_BTD is not None, "the gate reads the layer's input"
        with full_precision(mixed_BHTK):
            o_BHTK = mixed_BHTK.float()
            o_BHTK = o_BHTK * torch.rsqrt(o_BHTK.square().mean((1, 3), keepdim=True) + EPS)
        gate_BHTK = self.gate(x_BTD).unflatten(-1, (mixed_BHTK.shape[1], -1)).transpose(1, 2)
        return (o_BHTK * gate_BHTK.float()).to(mixed_BHTK.dtype)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TransNormerConfig(MixingConfig):
    """SRMSNorm(sum_j<=i silu(q_i) silu(k_j) exp(-s_h (i - j)) v_j) * W_u x with a fixed decay s_h per head and block.

    Qin et al. 2023 (TransNormerLLM, arXiv 2307.14995). D^2 parameters per layer, and D in those with lrpe. The authors
    use position=none qk_norm=none norm=srms mlp=sglu.
    """

    name: Literal["transnormer"] = "transnormer"
    saturates = False
    reads_scale = False
    slopes: Slopes = "code"
    """Decay by head and block: that of the released models, or the paper's formula (top of the file)."""
    lrpe: Literal["first", "all", "none"] = "first"
    """Blocks with LRPE-d, learned relative positions."""

    def build(self, layer: LayerShape) -> MixingRule:
        has_lrpe = self.lrpe == "all" or (self.lrpe == "first" and layer.block == 0)
        return TransNormer(layer, self.slopes, has_lrpe)
