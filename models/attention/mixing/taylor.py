"""Softmax attention with a truncated exponential: weights P(z_ij) / sum_k P(z_ik), P(z) = sum_n<=N z^n / n!, k <= i.

Mongaras & Larson 2025 (arXiv 2507.23632): each power of the logits is an RNN whose state consists of n-fold products of
keys, and softmax is the sum of all. N = 1 is linear attention with the feature map (1, x), N = 2 the kernel of Based
(Arora et al. 2024, arXiv 2402.18668).

P is positive for even N. For odd N, weights can be negative and a row can sum to zero. The denominator D is therefore
replaced by sign(D) max(|D|, 0.01 sum_k |P(z_ik)|), so no weight exceeds 100. This bound is ours; it never acts for even
N. The authors' code does not divide its sum of 80 terms by D; this follows the paper's formula.

Powers of large logits overflow. So each row is divided by r^N, r = max(1, max_k |z_ik|), which cancels: with u = z / r
and s = 1 / r the terms are u^n s^(N - n) N! / n!. From N = 5 on this runs in float64, as cancellation costs too many
digits in fp32.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule

LEAST = 0.01
SINGLE_PRECISION = 4


class Taylor(MixingRule):
    keeps_ratios = True

    def __init__(self, scale: float, order: int) -> None:
        super().__init__(scale)
        self.order = order

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        hidden_BHTT = z_BHTT == -math.inf
        z_BHTT = z_BHTT.masked_fill(hidden_BHTT, 0.0)
        if self.order > SINGLE_PRECISION:
            z_BHTT = z_BHTT.double()
        s_BHT1 = 1 / z_BHTT.detach().abs().amax(-1, keepdim=True).clamp_min(1.0)
        u_BHTT = z_BHTT * s_BHT1
        sum_BHTT = torch.ones_like(u_BHTT)
        for n in range(self.order - 1, -1, -1):
            coefficient = math.factorial(self.order) / math.factorial(n)
            sum_BHTT = sum_BHTT * u_BHTT + coefficient * s_BHT1 ** (self.order - n)
        sum_BHTT = sum_BHTT.masked_fill(hidden_BHTT, 0.0)
        total_BHT1 = sum_BHTT.sum(-1, keepdim=True)
        least_BHT1 = (LEAST * sum_BHTT.abs().sum(-1, keepdim=True)).clamp_min(1e-6)
        bounded_BHT1 = torch.where(total_BHT1 < 0, -1.0, 1.0) * torch.maximum(total_BHT1.abs(), least_BHT1)
        return (sum_BHTT / bounded_BHT1).float()


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TaylorConfig(MixingConfig):
    """Weights P(z) / sum_j<=i P(z) of the scaled logits, P(z) = sum_n<=N z^n / n! the Taylor polynomial of e^z.

    Mongaras & Larson 2025 (Softmax as an RNN, arXiv 2507.23632); N = 2: Arora et al. 2024 (Based, arXiv 2402.18668).
    """

    name: Literal["taylor"] = "taylor"
    saturates = False
    dot_product = True
    order: Annotated[int, Field(ge=1, le=80)] = 4
    """N, the largest power. Odd orders have signed weights. 80 is the largest in the authors' code."""

    def build(self, layer: LayerShape) -> MixingRule:
        return Taylor(layer.scale, self.order)
