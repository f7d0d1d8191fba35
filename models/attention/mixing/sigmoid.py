"""Sigmoid attention: weights sigmoid(z_ij + b), z = scale q k^T + bias, for j <= i, without normalization; b = -log n.

Ramapuram et al. 2024 (arXiv 2409.04431); apple/ml-sigmoid-attention and apple/axlearn. With b, the weights of a row
sum to about 1 when logits are 0. n is the same for all rows, the training context, as in axlearn, whose comment says
that using each row's length does not help. b is not trained.

normalize=true divides the weights of a row by their sum + 1e-8, and bias=false omits b: both arms of sigmoid
attention in the study of sinks of Gu et al. 2024 (arXiv 2410.10781; sail-sg/Attention-Sink,
lit_gpt/model_attn_sim.py), who find sinks with the division and none without.
"""

import math
from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule

EPS = 1e-8


class Sigmoid(MixingRule):
    keeps_ratios = True

    def __init__(self, scale: float, offset: float, normalize: bool) -> None:
        super().__init__(scale)
        self.offset = offset
        self.normalize = normalize

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        weights_BHTT = torch.sigmoid(z_BHTT + self.offset)
        return weights_BHTT / (weights_BHTT.sum(-1, keepdim=True) + EPS) if self.normalize else weights_BHTT


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SigmoidConfig(MixingConfig):
    """Weights sigmoid(scale q_i k_j + bias - log T), j <= i, T the context, without normalization.

    Ramapuram et al. 2024 (Sigmoid attention, arXiv 2409.04431).
    """

    name: Literal["sigmoid"] = "sigmoid"
    dot_product = True
    bias: bool = True
    """Add -log T to the logits. Without it, a row of zero logits sums to half its length."""
    normalize: bool = False
    """Divide the weights of a row by their sum. Gu et al. 2024 (arXiv 2410.10781), with bias=false."""

    def build(self, layer: LayerShape) -> MixingRule:
        return Sigmoid(layer.scale, -math.log(layer.context) if self.bias else 0.0, self.normalize)
