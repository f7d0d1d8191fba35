"""Attention whose logits belong to keys alone: all queries see the same ones.

    A_ij = softmax_j<=i(a_j + bias),   a_j = scale SiLU(q_j) k_j

q and k are of the same token. Rows without a bias are one row, cut off at i. Xue et al. 2025 (arXiv 2510.11602),
"Non-approximate" of their variants. They apply SiLU to the projected query, so that rotary positions, which turn q_j
and k_j alike, would do nothing; here SiLU comes behind qk_norm and positions, and sees turned queries with
position=rope: use position=none for theirs, whose logits have no positions.

One channel of a_j in the keys and of ones in the queries makes torch's fused kernels do it. Probes of logits are of a_j
and of the q_j and k_j of the same token, behind SiLU.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.softmax import Softmax
from models.probes import Stats, attention_scores, causal


class KeyLogits(Softmax):
    def own(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> torch.Tensor:
        """a / scale in fp32, [B, H, T]."""
        return (F.silu(q_BHTK.float()) * k_BHTK.float()).sum(-1)

    def channels(self, inputs: Inputs) -> Inputs:
        """With queries and keys whose products they are."""
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
        """Of the pairs of one token, where positions add nothing."""
        q_BHTK, k_BHTK, *_ = inputs
        _, heads, length, _ = q_BHTK.shape
        others_TT = torch.ones(length, length, dtype=torch.bool, device=q_BHTK.device).fill_diagonal_(False)
        pairs_HTT = torch.zeros(heads, length, length, device=q_BHTK.device).masked_fill(others_TT, -math.inf)
        gated_BHTK = F.silu(q_BHTK)
        stats = attention_scores(gated_BHTK, k_BHTK, self.scale, pairs_HTT)
        stats["cosine_mean"] = F.cosine_similarity(gated_BHTK, k_BHTK, dim=-1).mean((0, 2))
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
