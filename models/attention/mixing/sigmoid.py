"""Sigmoid attention: weights sigmoid(z_ij + b), z = scale q k^T + bias, for j <= i, without normalization; b = -log n.

Ramapuram et al. 2024 (arXiv 2409.04431); apple/ml-sigmoid-attention and apple/axlearn. With b, the weights of a row
sum to about 1 when logits are 0. n is the same for all rows, the training context, as in axlearn, whose comment says
that using each row's length does not help. b is not trained.
"""

import math
from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule


class Sigmoid(MixingRule):
    keeps_ratios = True

    def __init__(self, scale: float, offset: float) -> None:
        super().__init__(scale)
        self.offset = offset

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        return torch.sigmoid(z_BHTT + self.offset)


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

    def build(self, layer: LayerShape) -> MixingRule:
        return Sigmoid(layer.scale, -math.log(layer.context) if self.bias else 0.0)
