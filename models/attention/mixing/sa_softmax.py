"""Self-adjust softmax: softmax weights times their own logits, p_ij z_ij, or times the logits rescaled to [0, 1].

    product       p_ij z_ij
    normalized    p_ij (z_ij - m_i) / (M_i - m_i),  m_i = min(min_j z_ij, 0), M_i = max(max_j z_ij, 0)

p = softmax(z), z = scale q k^T + bias, j <= i. Zheng et al. 2025 (arXiv 2502.18277), abstract. As in HKUDS/SepLLM, the
gradient flows through min and max, and 1e-10 is added to the denominator. Weights of `product` are signed.
"""

import math
from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule

EPS = 1e-10


class SelfAdjustSoftmax(MixingRule):
    def __init__(self, scale: float, normalized: bool) -> None:
        super().__init__(scale)
        self.normalized = normalized

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        p_BHTT = torch.softmax(z_BHTT, -1)
        # Masked logits become 0, which leaves both extremes unchanged because they include 0 anyway.
        z_BHTT = z_BHTT.masked_fill(z_BHTT == -math.inf, 0.0)
        if not self.normalized:
            return p_BHTT * z_BHTT
        low_BHT1 = z_BHTT.amin(-1, keepdim=True).clamp_max(0.0)
        high_BHT1 = z_BHTT.amax(-1, keepdim=True).clamp_min(0.0)
        return p_BHTT * ((z_BHTT - low_BHT1) / (high_BHT1 - low_BHT1 + EPS))


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SelfAdjustSoftmaxConfig(MixingConfig):
    """softmax(z) times z, or times z rescaled to [0, 1] by the minimum and maximum of the row and 0.

    Zheng et al. 2025 (Self-adjust softmax, arXiv 2502.18277).
    """

    steep_at_zero = True
    name: Literal["sa_softmax"] = "sa_softmax"
    zero_logit_weighs = False
    dot_product = True
    form: Literal["normalized", "product"] = "normalized"
    """normalized: times (z - min) / (max - min); product: times z, signed and unbounded."""

    def build(self, layer: LayerShape) -> MixingRule:
        return SelfAdjustSoftmax(layer.scale, self.form == "normalized")
