"""Forgetting attention in the Pro block: keys and values are mixed with the previous token's; norm and output gate.

    k_t <- a_t k_t-1 + (1 - a_t) k_t,   a = sigmoid(W_k x)      (token 0 has zeros before it)
    v_t <- e_t v_t-1 + (1 - e_t) v_t,   e = sigmoid(W_v x)
    o = RMSNorm(forgetting attention) * sigmoid(W_g x)

a and e are one number per token and head, without a bias. The norm is per head, with separate weights for each head
(eps 1e-6). W_g has all D channels. Lin et al. 2025 (FoX, arXiv 2503.02130; zhixuan-lin/forgetting-transformer). Their
QK-norm is the qk_norm axis (qk_norm=rmsnorm, whose weights heads share; theirs do not), their SwiGLU the mlp axis.
Here qk_norm and positions act before keys are mixed; their QK-norm acts after that, and they use no positions. The init
axis fills the matrices.

`weights` multiply the mixed values. Probes of keys and logits are of mixed keys.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.fox import Forgetting
from models.attention.mixing.head_gate import HeadGate
from models.layers import Linear
from models.probes import Stats

EPS = 1e-6


def with_previous(y_BHTK: torch.Tensor, share_BHT: torch.Tensor) -> torch.Tensor:
    """Returns share y_t-1 + (1 - share) y_t in fp32."""
    y_BHTK, share_BHT1 = y_BHTK.float(), share_BHT[..., None]
    previous_BHTK = F.pad(y_BHTK[..., :-1, :], (0, 0, 1, 0))
    return share_BHT1 * previous_BHTK + (1 - share_BHT1) * y_BHTK


class ForgettingPro(Forgetting):
    def __init__(self, layer: LayerShape) -> None:
        super().__init__(layer)
        self.key_shift = HeadGate(layer.width, layer.heads, bias=False)
        self.value_shift = HeadGate(layer.width, layer.heads, bias=False)
        self.gate = Linear(layer.width, layer.heads * layer.head_dim)
        self.norm_HK = nn.Parameter(torch.ones(layer.heads, layer.head_dim))

    def keys(self, k_BHTK: torch.Tensor, x_BTD: torch.Tensor | None) -> torch.Tensor:
        return with_previous(k_BHTK, torch.sigmoid(self.key_shift(x_BTD)))

    def values(self, v_BHTK: torch.Tensor, x_BTD: torch.Tensor | None) -> torch.Tensor:
        return with_previous(v_BHTK, torch.sigmoid(self.value_shift(x_BTD))).to(v_BHTK.dtype)

    def finish(self, mixed_BHTK: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        assert x_BTD is not None, "the output gate reads the layer's input"
        heads, head_dim = self.norm_HK.shape
        gate_BHTK = torch.sigmoid(self.gate(x_BTD).float()).unflatten(-1, (heads, head_dim)).transpose(1, 2)
        normed_BHTK = F.rms_norm(mixed_BHTK.float(), (head_dim,), eps=EPS) * self.norm_HK[:, None]
        return (normed_BHTK * gate_BHTK).to(mixed_BHTK.dtype)

    def forward(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        return self.finish(super().forward(inputs, self.values(v_BHTK, inputs.x_BTD)), inputs.x_BTD)

    def watch_logits(self, inputs: Inputs) -> Stats:
        return super().watch_logits(inputs._replace(k_BHTK=self.keys(inputs.k_BHTK, inputs.x_BTD)))


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ForgettingProConfig(MixingConfig):
    """Forgetting attention over keys and values mixed with the previous token's, RMSNorm per head, and an output gate.

    Lin et al. 2025 (FoX Pro, arXiv 2503.02130). D^2 + 3 D H + D + H parameters per layer. The authors use position=none
    qk_norm=rmsnorm mlp=swiglu.
    """

    name: Literal["fox_pro"] = "fox_pro"

    def build(self, layer: LayerShape) -> MixingRule:
        return ForgettingPro(layer)
