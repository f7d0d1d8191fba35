"""Kernel attention with the features elu(x) + 1, with or without division by the row sum.

    s_ij = scale phi(q_i) phi(k_j),  phi(x) = elu(x) + 1;    w_ij = s_ij / max(sum_m<=i s_im, 1e-8)  or  w_ij = s_ij

Divided, it is the linear attention of Katharopoulos et al. 2020 (arXiv 2006.16236), section 3.2, in which the scale
cancels. Without the division it is an arm of the study of sinks of Gu et al. 2024 (arXiv 2410.10781): what they find to
make sinks is that the weights of a row compete for a sum of one. sail-sg/Attention-Sink, lit_gpt/model_attn_kernel.py,
which adds 1e-8 to the sum. Without the division, outputs grow with the number of keys.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.linear import LinearAttention


class EluKernel(LinearAttention):
    least = 1e-8

    def __init__(self, scale: float, normalize: bool) -> None:
        super().__init__(scale)
        self.normalized = normalize

    def features(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scale * (F.elu(inputs.q_BHTK.float()) + 1), F.elu(inputs.k_BHTK.float()) + 1


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class EluConfig(MixingConfig):
    """Weights proportional to (elu(q_i) + 1) (elu(k_j) + 1), j <= i, with or without a row sum of one, in linear time.

    Katharopoulos et al. 2020 (Linear Transformers, arXiv 2006.16236), section 3.2; without the sum: Gu et al. 2024
    (arXiv 2410.10781).
    """

    name: Literal["elu"] = "elu"
    saturates = False
    normalize: bool = True
    """Divide the weights of a row by their sum. false: scale phi(q_i) phi(k_j) as they are (Gu et al. 2024)."""

    @property
    def reads_scale(self) -> bool:  # type: ignore[override]
        return not self.normalize

    def build(self, layer: LayerShape) -> MixingRule:
        return EluKernel(layer.scale, self.normalize)
