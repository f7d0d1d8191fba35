"""Gated linear attention: each feature of the key decays at a rate of its own, set by the input.

    S_t = diag(a_t) S_t-1 + k_t v_t^T,    o_t = scale S_t^T q_t,    a = sigmoid(W_2 W_1 x + b)^(1 / 16)

Then RMSNorm(o) * silu(W_g x), the norm head by head with weights that heads share (eps 1e-5). Yang et al. 2024 (GLA,
arXiv 2312.06635), eqs. 3 to 5 and section 4.4; fla-org/flash-linear-attention, fla/layers/gla.py. Their keys have half
the width of values and heads are four; here queries, keys and values are the layer's, as wide as each other. b starts
at zero; their torch default draws it. They use no positions and no qk-norm: position=none qk_norm=none.

The explicit weights are scale sum_f q_if k_jf exp(c_if - c_jf), c the running sum of log a. They are signed, and their
rows have no fixed sum.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.head_gate import NormAndGate
from models.attention.mixing.linear import LinearAttention
from models.layers import Linear
from models.probes import full_precision


class FeatureGate(nn.Module):
    """Returns W x + b in fp32, one number per feature of each head, [B, H, T, K]; W = W_2 W_1 if it has a rank."""

    def __init__(self, layer: LayerShape, rank: int | None) -> None:
        super().__init__()
        self.heads = layer.heads
        self.squeeze = nn.Identity() if rank is None else Linear(layer.width, rank)
        self.expand = Linear(layer.width if rank is None else rank, layer.heads * layer.head_dim)
        self.bias = nn.Parameter(torch.zeros(layer.heads * layer.head_dim))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        with full_precision(x_BTD):
            y_BTD = self.expand(self.squeeze(x_BTD.float())) + self.bias
        return y_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GatedLinearAttention(LinearAttention):
    normalized = False

    def __init__(self, layer: LayerShape, rank: int | None, normalizer: float) -> None:
        super().__init__(layer.scale)
        self.normalizer = normalizer
        self.forget = FeatureGate(layer, rank)
        self.output = NormAndGate(layer)

    def features(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scale * inputs.q_BHTK.float(), inputs.k_BHTK.float()

    def log_decay(self, inputs: Inputs) -> torch.Tensor:
        assert inputs.x_BTD is not None, "gates read the layer's input"
        return F.logsigmoid(self.forget(inputs.x_BTD)) / self.normalizer

    def finish(self, mixed_BHTK: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        return self.output(mixed_BHTK, x_BTD)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class GLAConfig(MixingConfig):
    """Linear attention whose state decays by sigmoid(W_2 W_1 x + b)^(1/16) per feature, then RMSNorm and a silu gate.

    Yang et al. 2024 (GLA, arXiv 2312.06635). D^2 + rank (D + D) + D + K parameters per layer. The authors use
    position=none qk_norm=none.
    """

    name: Literal["gla"] = "gla"
    saturates = False
    reads_scale = False
    rank: Annotated[int, Field(ge=1)] | None = 16
    """Rank of the matrix of the gates. null: a full matrix, which muP requires."""
    normalizer: Annotated[float, Field(gt=0)] = 16.0
    """Log gates are divided by this, so that the state forgets slowly at the start."""

    @property
    def fan_in_follows_width(self) -> bool:  # type: ignore[override]
        return self.rank is None

    def build(self, layer: LayerShape) -> MixingRule:
        return GatedLinearAttention(layer, self.rank, self.normalizer)
