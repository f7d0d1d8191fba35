"""SOFT: a Gaussian kernel of queries, which are also the keys, in place of softmax.

    S_ij = exp(-scale |q_i - q_j|^2 / 2 + bias),  D_i = sum_j<=i S_ij

    none        w_ij = S_ij                     Lu et al. 2021 (SOFT, arXiv 2110.11945; fudan-zvg/SOFT)
    row         w_ij = S_ij / D_i
    symmetric   w_ij = S_ij / sqrt(D_i D_j)     Lu et al. 2022 (arXiv 2207.03341), the default

One matrix makes queries and keys. Both papers are about images, where a Nystrom approximation makes the cost linear.
Its landmarks would mix in the future, so here the kernel is exact and quadratic in T. The causal D, the sum as the
token itself saw it in the row's and in the column's factor, is our reading. D >= 1, because S_ii = 1, unless qk_norm
has learned different gains for queries and keys; it is at least 1e-6.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.probes import causal, scaled_products

LEAST = 1e-6
Normalize = Literal["none", "row", "symmetric"]


class SoftmaxFree(MixingRule):
    shares_keys = True

    def __init__(self, scale: float, normalize: Normalize) -> None:
        super().__init__(scale)
        self.normalize = normalize

    def weights(self, inputs: Inputs) -> torch.Tensor:
        q_BHTK, k_BHTK, bias_HTT, _ = inputs
        q_BHTK, k_BHTK = q_BHTK.float(), k_BHTK.float()
        square_BHT1, square_BH1T = (x.square().sum(-1) * self.scale for x in (q_BHTK, k_BHTK))
        twice_BHTT = 2 * scaled_products(q_BHTK, k_BHTK, self.scale)
        # Rounding can make the distance of equal tokens negative.
        distance_BHTT = (square_BHT1[..., :, None] + square_BH1T[..., None, :] - twice_BHTT).clamp_min(0.0)
        z_BHTT = causal(-distance_BHTT / 2, bias_HTT)
        if self.normalize == "row":
            return torch.softmax(z_BHTT, -1)
        s_BHTT = z_BHTT.exp()
        if self.normalize == "none":
            return s_BHTT
        root_BHT = s_BHTT.sum(-1).clamp_min(LEAST).rsqrt()
        return s_BHTT * root_BHT[..., :, None] * root_BHT[..., None, :]


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SOFTConfig(MixingConfig):
    """S_ij / sqrt(D_i D_j), S_ij = exp(-scale |q_i - q_j|^2 / 2 + bias) of queries that are also keys, D_i the row sum.

    Lu et al. 2021 (SOFT, arXiv 2110.11945), normalized as in Lu et al. 2022 (arXiv 2207.03341). D^2 parameters fewer
    per layer.
    """

    name: Literal["soft"] = "soft"
    zero_init_safe = False
    shards = False  # one module has two names
    shares_keys = True
    normalize: Normalize = "symmetric"
    """none: S. row: S / D_i. symmetric: S / sqrt(D_i D_j)."""

    def build(self, layer: LayerShape) -> MixingRule:
        return SoftmaxFree(layer.scale, self.normalize)
