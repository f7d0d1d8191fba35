"""Gated DeltaNet: each token replaces what the state recalls for its key, and the state decays.

    S_t = a_t S_t-1 + b_t k_t (v_t - a_t S_t-1^T k_t)^T,    o_t = scale S_t^T q_t
    a = exp(-A softplus(W_a x + c)),    b = sigmoid(W_b x),    one number each per token and head

q, k and v are silu(conv(.)) of the layer's, with a causal convolution of four taps per feature; then q and k are
divided by their norms. The output is RMSNorm(o) * silu(W_g x), the norm head by head with weights that heads share
(eps 1e-5). Yang, Kautz & Hatamizadeh 2024 (Gated DeltaNet, arXiv 2412.06464), eq. 10 and section 3.4;
NVlabs/GatedDeltaNet and fla-org/flash-linear-attention, fla/layers/gated_deltanet.py. A starts uniform in (0, 16) and
softplus(c) log-uniform in (0.001, 0.1); weight decay skips both.

gate=false is DeltaNet: a = 1 and no output gate. Yang et al. 2024 (DeltaNet, arXiv 2406.06484);
fla/layers/delta_net.py.

Here values are as wide as keys; their Gated DeltaNet has values twice as wide. qk_norm and positions act before the
convolution. The authors use none: position=none qk_norm=none. Norms are sqrt(|q|^2 + 1e-6), as theirs, so queries that
start at zero get a gradient.

The explicit weights of the convolved values are scale (Q K^T * L) (I + tril(b K K^T * L, -1))^-1 diag(b), L the decay
between two tokens. They are signed, and their rows have no fixed sum.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.linear_time import delta_rule, delta_weights
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.head_gate import HeadGate, NormAndGate
from models.attention.mixing.linear import LinearAttention
from models.attention.mixing.recurrence import Convolved, Rates

EPS = 1e-6


def unit(x_BHTK: torch.Tensor) -> torch.Tensor:
    return x_BHTK * torch.rsqrt(x_BHTK.square().sum(-1, keepdim=True) + EPS)


class Delta(LinearAttention):
    normalized = False

    def __init__(self, layer: LayerShape, gate: bool, taps: int) -> None:
        super().__init__(layer.scale)
        self.query, self.key, self.value = (Convolved(layer, taps) if taps else nn.Identity() for _ in range(3))
        self.strength = HeadGate(layer.width, layer.heads, bias=False)
        self.forget = HeadGate(layer.width, layer.heads, bias=False) if gate else None
        self.rates = Rates(layer.heads, 0.0, 16.0) if gate else None
        self.output = NormAndGate(layer, gate)

    def features(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        q_BHTK, k_BHTK = self.query(inputs.q_BHTK.float()), self.key(inputs.k_BHTK.float())
        return self.scale * unit(q_BHTK), unit(k_BHTK)

    def values(self, v_BHTK: torch.Tensor, x_BTD: torch.Tensor | None) -> torch.Tensor:
        return self.value(v_BHTK).to(v_BHTK.dtype)

    def log_decay(self, inputs: Inputs) -> torch.Tensor | None:
        if self.forget is None or self.rates is None:
            return None
        return self.rates(self.forget(inputs.x_BTD).mT).mT

    def beta(self, inputs: Inputs) -> torch.Tensor:
        return torch.sigmoid(self.strength(inputs.x_BTD))

    def summed(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        return delta_rule(*self.features(inputs), v_BHTK, self.beta(inputs), self.log_decay(inputs))

    def raw_weights(self, inputs: Inputs) -> torch.Tensor:
        return delta_weights(*self.features(inputs), self.beta(inputs), self.log_decay(inputs))

    def finish(self, mixed_BHTK: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        return self.output(mixed_BHTK, x_BTD)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class GatedDeltaConfig(MixingConfig):
    """S_t = a_t S_t-1 + b_t k_t (v_t - a_t S_t-1^T k_t)^T, o_t = S_t^T q_t: Gated DeltaNet; DeltaNet without its gates.

    Yang et al. 2024 (Gated DeltaNet, arXiv 2412.06464; DeltaNet, arXiv 2406.06484). The authors use
    position=none qk_norm=none.
    """

    name: Literal["gated_delta"] = "gated_delta"
    saturates = False
    reads_scale = False
    gate: bool = True
    """Let the state decay, and gate the output. false: DeltaNet."""
    taps: Annotated[int, Field(ge=0)] = 4
    """Tokens that the convolutions of queries, keys and values span. 0: no convolution and no silu."""

    @property
    def reads_lengths(self) -> bool:  # type: ignore[override]
        """Returns False without convolutions, whose silu is not linear."""
        return self.taps > 0

    def build(self, layer: LayerShape) -> MixingRule:
        return Delta(layer, self.gate, self.taps)
