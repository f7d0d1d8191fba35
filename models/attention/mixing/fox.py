"""Forgetting attention: softmax attention whose logits are lowered by the forget gates between key and query.

    softmax_j<=i(scale q_i k_j + bias + D_ij),   D_ij = sum_j<l<=i log f_l,   f = sigmoid(W x + b)

with one gate per token and head. Lin et al. 2025 (FoX, arXiv 2503.02130; zhixuan-lin/forgetting-transformer). With
constant gates it is ALiBi of slope -log f. The authors use no other positions: position=none. The init axis fills W
(theirs: std 0.02); b starts at zero and decays like all parameters here.

D_ij = c_i - c_j, where c is the running sum of log f, and softmax ignores c_i, which is the same for all keys of a row.
So one more channel, 1 in queries and -c_j in keys, lets torch's fused kernels compute it. They run in fp32 because c
grows with the length. Probes of logits are of scale q k + bias, before D, for comparison with other rules.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.head_gate import HeadGate
from models.attention.mixing.softmax import Softmax, has_fused_entropy
from models.probes import causal, full_precision, fused_entropy, scaled_products
from models.reductions import cumsum

# Fused kernels on GPUs need a multiple of this many channels.
CHANNELS = 8


class Forgetting(Softmax):
    def __init__(self, layer: LayerShape) -> None:
        super().__init__(layer.scale)
        self.forget = HeadGate(layer.width, layer.heads, bias=True)

    def keys(self, k_BHTK: torch.Tensor, x_BTD: torch.Tensor | None) -> torch.Tensor:
        """Returns the keys to attend to; subclasses may transform them."""
        return k_BHTK

    def kept(self, x_BTD: torch.Tensor | None) -> torch.Tensor:
        """Returns c, the running sum of log f, [B, H, T]."""
        return cumsum(F.logsigmoid(self.forget(x_BTD)), -1)

    def extended(self, inputs: Inputs) -> Inputs:
        """Appends the gate channel to queries and keys, in fp32, and zero-pads them to a multiple of CHANNELS."""
        q_BHTK, k_BHTK, _, x_BTD = inputs
        zeros = CHANNELS - 1 - q_BHTK.shape[-1] % CHANNELS
        gate_BHT1 = -self.kept(x_BTD)[..., None] / self.scale
        q_BHTC = F.pad(F.pad(q_BHTK.float(), (0, 1), value=1.0), (0, zeros))
        k_BHTC = F.pad(torch.cat([self.keys(k_BHTK, x_BTD).float(), gate_BHT1], -1), (0, zeros))
        return inputs._replace(q_BHTK=q_BHTC, k_BHTK=k_BHTC)

    def forward(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        extended, head_dim = self.extended(inputs), v_BHTK.shape[-1]
        v_BHTC = F.pad(v_BHTK.float(), (0, extended.q_BHTK.shape[-1] - head_dim))
        return super().forward(extended, v_BHTC)[..., :head_dim].to(v_BHTK.dtype)

    def weights(self, inputs: Inputs) -> torch.Tensor:
        q_BHTK, k_BHTK, bias_HTT, x_BTD = inputs
        c_BHT = self.kept(x_BTD)
        z_BHTT = scaled_products(q_BHTK, self.keys(k_BHTK, x_BTD), self.scale)
        return torch.softmax(causal(z_BHTT + c_BHT[..., :, None] - c_BHT[..., None, :], bias_HTT), -1)

    def entropy(self, inputs: Inputs) -> torch.Tensor:
        if not has_fused_entropy(inputs):
            return MixingRule.entropy(self, inputs)
        with full_precision(inputs.q_BHTK):
            extended = self.extended(inputs)
            return fused_entropy(extended.q_BHTK, extended.k_BHTK, self.scale)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ForgettingConfig(MixingConfig):
    """softmax_j<=i(scale q_i k_j + bias + sum_j<l<=i log f_l) with forget gates f = sigmoid(W x + b), one per head.

    Lin et al. 2025 (FoX, arXiv 2503.02130). D H + H parameters per layer. The authors use position=none.
    """

    name: Literal["fox"] = "fox"

    def build(self, layer: LayerShape) -> MixingRule:
        return Forgetting(layer)
