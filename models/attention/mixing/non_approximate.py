"""Attention whose logits depend on keys alone, so all queries share them.

    A_ij = softmax_j<=i(a_j + bias),   a_j = scale SiLU(q_j) k_j

q and k come from the same token. Without a bias, all rows are the same row, truncated at i. Xue et al. 2025 (arXiv
2510.11602), their "Non-approximate" variant. They apply SiLU to the projected query before rotary positions, which then
rotate q_j and k_j alike and cancel. Here SiLU acts after qk_norm and positions, so with position=rope it sees rotated
queries. Use position=none for their form, whose logits have no positions.

One channel, a_j in the keys and 1 in the queries, lets torch's fused kernels compute it. Probes of logits are of a_j
and its factors: q_j after SiLU and k_j, of the same token.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.softmax import Softmax
from models.probes import Stats, attention_scores, causal, unit


class KeyLogits(Softmax):
    def own(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> torch.Tensor:
        """Returns a / scale in fp32, [B, H, T]."""
        return (F.silu(q_BHTK.float()) * k_BHTK.float()).sum(-1)

    def channels(self, inputs: Inputs) -> Inputs:
        """Returns inputs with queries and keys whose products are a / scale."""
        own_BHT1 = self.own(inputs.q_BHTK, inputs.k_BHTK)[..., None]
        rest = (0, inputs.q_BHTK.shape[-1] - 1)
        return inputs._replace(q_BHTK=F.pad(torch.ones_like(own_BHT1), rest), k_BHTK=F.pad(own_BHT1, rest))

    def forward(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        return super().forward(self.channels(inputs), v_BHTK)

    def weights(self, inputs: Inputs) -> torch.Tensor:
        a_BHT = self.scale * self.own(inputs.q_BHTK, inputs.k_BHTK)
        a_BHTT = a_BHT[..., None, :].expand(*a_BHT.shape, a_BHT.shape[-1])
        return torch.softmax(causal(a_BHTT, inputs.bias_HTT), -1)

    def entropy(self, inputs: Inputs) -> torch.Tensor:
        if inputs.bias_HTT is not None:
            return MixingRule.entropy(self, inputs)
        return super().entropy(self.channels(inputs))

    def watch_logits(self, inputs: Inputs) -> Stats:
        """Probes only pairs of the same token, where positions add nothing."""
        q_BHTK, k_BHTK, *_ = inputs
        _, heads, length, _ = q_BHTK.shape
        others_TT = torch.ones(length, length, dtype=torch.bool, device=q_BHTK.device).fill_diagonal_(False)
        pairs_HTT = torch.zeros(heads, length, length, device=q_BHTK.device).masked_fill(others_TT, -math.inf)
        gated_BHTK = F.silu(q_BHTK)
        stats = attention_scores(gated_BHTK, k_BHTK, self.scale, pairs_HTT)
        stats["cosine_mean"] = (unit(gated_BHTK) * unit(k_BHTK)).sum(-1).mean((0, 2))
        return stats


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class KeyLogitsConfig(MixingConfig):
    """softmax_j<=i(scale SiLU(q_j) k_j + bias): logits of keys alone, the same for all queries.

    Xue et al. 2025 (Deconstructing Attention, arXiv 2510.11602), Non-approximate.
    """

    name: Literal["non_approximate"] = "non_approximate"

    def build(self, layer: LayerShape) -> MixingRule:
        return KeyLogits(layer.scale)
