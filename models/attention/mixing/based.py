"""Based: linear attention whose weights are the second-order Taylor polynomial of exp, with narrow queries and keys.

    w_ij = 1 + z + z^2 / 2,  z = scale q_i k_j;    o_i = sum_j<=i w_ij v_j / sum_j<=i w_ij

It is linear in T because w is a product of the features [1, x, vec(x x^T) / sqrt(2)] of x = sqrt(scale) q and of
x = sqrt(scale) k. Queries and keys have 16 features a head, which makes 153 of these (273 in the paper, which counts
x_a x_b twice); values are as wide as the head. Positions don't rotate these queries and keys. w >= 1/2, so no row is
lost. Arora et al. 2024 (Based, arXiv 2402.18668); HazyResearch/based, based/models/mixers/linear_attention.py. The rule
`taylor` has the same weights in quadratic time, at the width of the head and of any order.

Their model of 27 blocks repeats short convolution, this rule, window attention, and two short convolutions:
attention=based attention.pattern=[short_conv,self,window,short_conv,short_conv].
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.linear import LinearAttention


def taylor_features(x: torch.Tensor) -> torch.Tensor:
    """Returns [1, x, vec(x x^T) / sqrt(2)], with x_a x_b and x_b x_a as one feature: products are 1 + z + z^2 / 2."""
    row, column = torch.triu_indices(x.shape[-1], x.shape[-1], device=x.device)
    # Off the diagonal a pair counts twice in the square of a product.
    factor = x.new_ones(len(row)).masked_fill(row == column, 0.5**0.5)
    return torch.cat([torch.ones_like(x[..., :1]), x, x[..., row] * x[..., column] * factor], -1)


def taylor_kernel(z: torch.Tensor) -> torch.Tensor:
    return 1 + z + z.square() / 2


class Based(LinearAttention):
    # About as many tokens as features: less work than with more and smaller chunks.
    chunk = 256
    expand = staticmethod(taylor_features)
    kernel = staticmethod(taylor_kernel)

    def __init__(self, scale: float, key_dim: int) -> None:
        super().__init__(scale)
        self.key_dim = key_dim

    def features(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        root = self.scale**0.5
        return root * inputs.q_BHTK.float(), root * inputs.k_BHTK.float()


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class BasedConfig(MixingConfig):
    """Weights proportional to 1 + z + z^2 / 2, z = scale q_i k_j with q and k of 16 features a head, in linear time.

    Arora et al. 2024 (Based, arXiv 2402.18668).
    """

    name: Literal["based"] = "based"
    saturates = False
    features: Annotated[int, Field(ge=1)] = 16
    """Features of a head's queries and keys."""

    @property
    def key_dim(self) -> int:  # type: ignore[override]
        return self.features

    def build(self, layer: LayerShape) -> MixingRule:
        return Based(layer.scale, self.features)
