"""Squared-ReLU attention: weights relu(s_ij)^2 / sqrt(T), s = scale q k^T + bias, for j <= i, without normalization.

Wortsman et al. 2023, Fig. E.11, replace softmax by it and still see logits grow. They do not say what T, the "sequence
length", means for causal rows. Here it is the training context, one number for all rows, like the factors L^-alpha of
"Replacing softmax with ReLU in vision transformers" (Wortsman et al. 2023, arXiv 2309.08586). The number of keys
visible to a row would be a different rule. With the input's length, later tokens would scale earlier outputs.
"""

import math
from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule


class SquaredReLU(MixingRule):
    keeps_ratios = True

    def __init__(self, scale: float, context: int) -> None:
        super().__init__(scale)
        self.root = math.sqrt(context)

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        # relu(-inf) = 0, so masked keys have no weight.
        return torch.relu(z_BHTT).square() / self.root


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SquaredReLUConfig(MixingConfig):
    """Weights relu(scale q_i k_j + bias)^2 / sqrt(T), j <= i, T the context. Wortsman et al. 2023, Fig. E.11."""

    name: Literal["relu_squared"] = "relu_squared"
    zero_logit_weighs = False
    saturates = False
    dot_product = True
    zero_init_safe = False

    def build(self, layer: LayerShape) -> MixingRule:
        return SquaredReLU(layer.scale, layer.context)
