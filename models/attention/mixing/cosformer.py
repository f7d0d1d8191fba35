"""cosFormer: linear attention with ReLU features, whose weights fall with distance like a cosine.

    w_ij = relu(q_i) relu(k_j) cos(pi (i - j) / (2 M));    o_i = sum_j<=i w_ij v_j / max(sum_j<=i w_ij, 1e-6)

It is linear in T because cos(a - b) = cos a cos b + sin a sin b, so the features are relu(x_t) cos(pi t / 2M) and
relu(x_t) sin(pi t / 2M). Qin et al. 2022 (cosFormer, arXiv 2202.08791), eq. 10; OpenNLPLab/cosFormer. There M is the
length of the current sequence, which lets a token depend on how many follow it. Here M is the context, or the length if
it is longer, as it can be in evaluation only. The authors use no other positions: position=none.

A query or all of its keys can have only negative features. Such a row has no weights and outputs zero, and zero_rows
counts it.
"""

import math
from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.linear import LinearAttention


class CosFormer(LinearAttention):
    least = 1e-6

    def __init__(self, scale: float, context: int) -> None:
        super().__init__(scale)
        self.context = context

    def features(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        length, device = inputs.q_BHTK.shape[-2], inputs.q_BHTK.device
        longest = max(length, self.context)
        angle_T1 = (torch.arange(length, device=device, dtype=torch.float32) * (math.pi / 2 / longest))[:, None]
        cos_T1, sin_T1 = angle_T1.cos(), angle_T1.sin()
        q_BHTK, k_BHTK = (torch.relu(x.float()) for x in (inputs.q_BHTK, inputs.k_BHTK))
        return torch.cat([q_BHTK * cos_T1, q_BHTK * sin_T1], -1), torch.cat([k_BHTK * cos_T1, k_BHTK * sin_T1], -1)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CosFormerConfig(MixingConfig):
    """Weights proportional to relu(q_i) relu(k_j) cos(pi (i - j) / 2T), j <= i, T the context, in linear time.

    Qin et al. 2022 (cosFormer, arXiv 2202.08791). The authors use position=none.
    """

    name: Literal["cosformer"] = "cosformer"
    saturates = False
    reads_scale = False
    zero_init_safe = False

    def build(self, layer: LayerShape) -> MixingRule:
        return CosFormer(layer.scale, layer.context)
