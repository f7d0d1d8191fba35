"""Sparsemax attention: each row of weights is the projection of its logits onto the simplex, max(z_ij - tau_i, 0).

Martins & Astudillo 2016 (arXiv 1602.02068). deep-spin/entmax finds, by sorting, the tau at which a row sums to 1.
Logits more than 1 below the largest have no weight and no gradient.
"""

from typing import Literal

import torch
from entmax import sparsemax
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.entmax import by_sort


class Sparsemax(MixingRule):
    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        return by_sort(sparsemax, z_BHTT)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SparsemaxConfig(MixingConfig):
    """max(z - tau, 0) of the scaled logits of visible keys, tau such that each row sums to one.

    Martins & Astudillo 2016 (Sparsemax, arXiv 1602.02068).
    """

    name: Literal["sparsemax"] = "sparsemax"
    dot_product = True

    def build(self, layer: LayerShape) -> MixingRule:
        return Sparsemax(layer.scale)
