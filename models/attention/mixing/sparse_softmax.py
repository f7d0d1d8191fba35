"""Sparse softmax: softmax over the k largest logits of each row, exact zeros elsewhere.

Sun et al. 2021 (arXiv 2112.12433) use it as an output layer. In attention, over the visible keys of each query, it is
the explicit sparse Transformer of Zhao et al. 2019 (arXiv 1912.11637). Rows of at most k keys are plain softmax. All
keys that tie with the k-th largest are kept, so that weights do not depend on the order of keys.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule


class SparseSoftmax(MixingRule):
    def __init__(self, scale: float, k: int) -> None:
        super().__init__(scale)
        self.k = k

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        # With fewer than k visible keys the k-th largest is -inf, so nothing is masked.
        least_BHT1 = z_BHTT.detach().topk(min(self.k, z_BHTT.shape[-1]), -1).values[..., -1:]
        return torch.softmax(z_BHTT.masked_fill(z_BHTT < least_BHT1, -math.inf), -1)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SparseSoftmaxConfig(MixingConfig):
    """Softmax over the k largest scaled logits of each row, zero elsewhere. Sun et al. 2021 (Sparse-softmax, arXiv
    2112.12433); Zhao et al. 2019 (arXiv 1912.11637).
    """

    name: Literal["sparse_softmax"] = "sparse_softmax"
    dot_product = True
    k: Annotated[int, Field(ge=1)] = 4
    """Number of keys that a query attends to. Our default, for contexts of 64."""

    def build(self, layer: LayerShape) -> MixingRule:
        return SparseSoftmax(layer.scale, self.k)
