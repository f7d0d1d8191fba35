"""Magnitude-aware linear attention, MALA: rows sum to one, yet longer queries give sharper weights.

    s_ij = scale phi(q_i) phi(k_j),  phi(x) = elu(x) + 1,  S_i = sum_j<=i s_ij,  i counted from 1
    w_ij = (1 + 1 / S_i) s_ij - S_i / i

so the rows sum to S_i + 1 - S_i = 1. Weights can be negative. Fan et al. 2025 (MALA, arXiv 2507.00698; qhfan/MALA,
classfication_release/model.py). The published code is for images. Our reading for text: sums over the keys that a row
sees, and their number i, in place of all N. There RoPE acts on the features in the numerator alone, a convolution of
the values is added, and the output is gated. Here positions act before phi, as for other rules; gates are the gate
axis. S is at least 1e-6.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.linear import LinearAttention
from models.attention.mixing.lssa import visible
from models.reductions import cumsum


class MagnitudeAware(LinearAttention):
    normalized = False
    least = 1e-6

    def features(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        root = self.scale**0.5
        return root * (F.elu(inputs.q_BHTK.float()) + 1), root * (F.elu(inputs.k_BHTK.float()) + 1)

    def mixed(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        summed_BHTK = self.summed(inputs, torch.cat([v_BHTK, torch.ones_like(v_BHTK[..., :1])], -1))
        of_values_BHTK, sum_BHT1 = summed_BHTK[..., :-1], summed_BHTK[..., -1:].clamp_min(self.least)
        mean_BHTK = cumsum(v_BHTK, -2) / visible(v_BHTK.shape[-2], v_BHTK.device)[:, None]
        return (1 + 1 / sum_BHT1) * of_values_BHTK - sum_BHT1 * mean_BHTK

    def weights(self, inputs: Inputs) -> torch.Tensor:
        s_BHTT = self.biased_weights(inputs)
        sum_BHT1 = s_BHTT.sum(-1, keepdim=True).clamp_min(self.least)
        count_T1 = visible(s_BHTT.shape[-1], s_BHTT.device)[:, None]
        return (1 + 1 / sum_BHT1) * s_BHTT - (sum_BHT1 / count_T1).expand_as(s_BHTT).tril()


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MALAConfig(MixingConfig):
    """Weights (1 + 1/S_i) s_ij - S_i / i, s = scale phi(q_i) phi(k_j), phi = elu + 1, S_i the row's sum, linear in T.

    Fan et al. 2025 (MALA, arXiv 2507.00698); the causal form is our reading.
    """

    name: Literal["mala"] = "mala"
    saturates = False

    def build(self, layer: LayerShape) -> MixingRule:
        return MagnitudeAware(layer.scale)
