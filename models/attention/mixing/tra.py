"""Threshold relative attention: attends only to keys with positive logits and measures distance in such keys.

    S_ij = relu(scale q_i k_j + bias),  kept_ij = [S_ij > 0],  D_ij = log sigmoid(W x_i + b) #{kept m: j <= m <= i}
    A_ij = softmax over the kept j <= i of S_ij + D_ij, 0 for all others; an all-zero row if no key is kept

with one gate per token and head, of the query; the nearest kept key has count 1. Opper et al. 2025 (TRA, arXiv
2503.23174). Dropped keys do not affect the other weights. The authors use no other positions (position=none), and
queries and keys of unit RMS without learned scales. Here that is the qk_norm axis (qk_norm=fixed has the same
directions and fixed lengths). Our readings: position biases add to the logit before the threshold, the init axis fills
W, and b starts at zero. Counts have no gradient.

Probes of logits are of scale q k + bias, before the threshold.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.head_gate import HeadGate
from models.reductions import cumsum


class ThresholdRelative(MixingRule):
    def __init__(self, layer: LayerShape) -> None:
        super().__init__(layer.scale)
        self.gate = HeadGate(layer.width, layer.heads, bias=True)

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        kept_BHTT = z_BHTT > 0
        # Counts from the diagonal back to each key.
        count_BHTT = cumsum(kept_BHTT.float().flip(-1), -1).flip(-1)
        delta_BHT1 = F.logsigmoid(self.gate(x_BTD))[..., None]
        # A finite minimum avoids NaN in rows without kept keys; the final mask sets these rows to zero.
        lowest = torch.finfo(torch.float32).min
        scores_BHTT = (z_BHTT + delta_BHT1 * count_BHTT).masked_fill(~kept_BHTT, lowest)
        return torch.softmax(scores_BHTT, -1) * kept_BHTT


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ThresholdRelativeConfig(MixingConfig):
    """Softmax of z_ij + log sigmoid(W x_i + b) c_ij over keys with z_ij > 0, c_ij the number of these in j ... i.

    Opper et al. 2025 (TRA, arXiv 2503.23174). D H + H parameters per layer. The authors use position=none.
    """

    name: Literal["tra"] = "tra"
    zero_init_safe = False  # zero logits keep no key

    def build(self, layer: LayerShape) -> MixingRule:
        return ThresholdRelative(layer)
