"""Clipped softmax: clip((zeta - gamma) softmax_j<=i(z_ij) + gamma, 0, 1), gamma = -alpha / T, T the context.

Bondarenko et al. 2023 (arXiv 2306.12929), section 4.1; Qualcomm-AI-research/outlier-free-transformers. Weights below
-gamma / (zeta - gamma) become exactly 0, so a head can output nothing without growing its logits. Clipped weights have
no gradient. Masked keys have softmax 0, which gamma <= 0 clips to 0.

A row of n equal logits is clipped to 0 if n >= (zeta T + alpha) / alpha. With the published alpha, this holds for
nearly all rows of an untrained model with small logits.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule


class ClippedSoftmax(MixingRule):
    def __init__(self, scale: float, gamma: float, zeta: float) -> None:
        super().__init__(scale)
        self.gamma, self.zeta = gamma, zeta

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        stretched_BHTT = (self.zeta - self.gamma) * torch.softmax(z_BHTT, -1) + self.gamma
        return stretched_BHTT.clamp(0.0, 1.0)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ClippedSoftmaxConfig(MixingConfig):
    """clip((zeta - gamma) softmax(z) + gamma, 0, 1) of the scaled logits, gamma = -alpha / T, T the context.

    Bondarenko et al. 2023 (Clipped softmax, arXiv 2306.12929), section 4.1.
    """

    name: Literal["clipped_softmax"] = "clipped_softmax"
    zero_init_safe = False  # equal logits are clipped to zero in rows of more than a few keys
    dot_product = True
    alpha: Annotated[float, Field(ge=0)] = 12.0
    """-gamma times the context. Default: the authors' script for OPT-125M, at context 512."""
    zeta: Annotated[float, Field(ge=1)] = 1.0
    """Upper end of the range that softmax is stretched to. Above 1, a weight can reach exactly 1."""

    def build(self, layer: LayerShape) -> MixingRule:
        return ClippedSoftmax(layer.scale, -self.alpha / layer.context, self.zeta)
