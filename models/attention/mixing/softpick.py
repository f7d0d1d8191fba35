"""Softpick, rectified softmax: relu(e^z_ij - 1) / (sum_k |e^z_ik - 1| + 1e-8), z = scale q k^T + bias, k <= i.

Zuhri et al. 2025 (arXiv 2504.20966); zaydzuhri/softpick-attention. A row without a positive logit has no weight at all,
so no head needs a sink. The first token's weight is 1 or 0. Weights are not invariant to a shift of the logits.

All terms are divided by e^m, m = max(0, max_k z_ik). The published code has m = max_k z_ik, whose e^-m overflows in
fp32 if all logits of a row are below -88. The gradient is then NaN; here it is 0.
"""

import math
from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule

EPS = 1e-8


class Softpick(MixingRule):
    keeps_ratios = True

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        # Masked logits become 0, which contributes e^0 - 1 = 0 to both numerator and sum.
        z_BHTT = z_BHTT.masked_fill(z_BHTT == -math.inf, 0.0)
        m_BHT1 = z_BHTT.detach().amax(-1, keepdim=True).clamp_min(0.0)
        # e^(z - m) - e^-m, by expm1 where the difference would cancel.
        small_BHTT = torch.exp(-m_BHT1) * torch.expm1(z_BHTT.clamp_max(1.0))
        excess_BHTT = torch.where(z_BHTT < 1, small_BHTT, torch.exp(z_BHTT - m_BHT1) - torch.exp(-m_BHT1))
        return torch.relu(excess_BHTT) / (excess_BHTT.abs().sum(-1, keepdim=True) + EPS)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SoftpickConfig(MixingConfig):
    """relu(e^z - 1) / sum_j<=i |e^z - 1| of the scaled logits: rows sum to at most one, and to zero where no logit is
    positive. Zuhri et al. 2025 (Softpick, arXiv 2504.20966).
    """

    name: Literal["softpick"] = "softpick"
    zero_logit_weighs = False
    dot_product = True
    zero_init_safe = False

    def build(self, layer: LayerShape) -> MixingRule:
        return Softpick(layer.scale)
