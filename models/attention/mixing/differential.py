"""Differential attention: the difference of two softmax maps, which cancels what both attend to.

    A = softmax(scale q1 k1 + bias) - lambda softmax(scale q2 k2 + bias),  y = (1 - lambda_init) RMSNorm(A V)
    lambda = exp(l_q1 . l_k1) - exp(l_q2 . l_k2) + lambda_init,  lambda_init = 0.8 - 0.6 exp(-0.3 l)

Ye et al. 2024 (Differential Transformer, arXiv 2410.05258), eqs. 1 to 3; microsoft/unilm,
Diff-Transformer/multihead_diffattn.py. Heads 2h and 2h + 1, counted from 0, form a pair. Their queries and keys are q1,
k1 and q2, k2. V concatenates their values, so it is twice as wide as a head. `weights` returns A for both heads of a
pair. The norm acts on the 2 K features of a pair; all pairs share its weights. l is the block index, from 0. Each layer
has one set of vectors l_q1, l_k1, l_q2 and l_k2, initially normal with std 0.1. They decay like all vectors.

Shape suffixes: B batch, H heads, P pairs of heads, T tokens, K head dimension.
"""

import math
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.softmax import Softmax
from models.norms import RMSNorm

if TYPE_CHECKING:
    from models.architecture import Architecture


class Differential(MixingRule):
    def __init__(self, scale: float, head_dim: int, lambda_init: float) -> None:
        super().__init__(scale)
        self.softmax = Softmax(scale)
        self.lambda_init = lambda_init
        self.query_1, self.key_1, self.query_2, self.key_2 = (nn.Parameter(torch.zeros(head_dim)) for _ in range(4))
        self.norm = RMSNorm(2 * head_dim, 1e-5)

    def draw(self, generator: torch.Generator) -> None:
        for vector in (self.query_1, self.key_1, self.query_2, self.key_2):
            vector.normal_(0, 0.1, generator=generator)

    def factor(self) -> torch.Tensor:
        """Returns lambda, a scalar."""
        first, second = (self.query_1 * self.key_1).sum(), (self.query_2 * self.key_2).sum()
        return first.exp() - second.exp() + self.lambda_init

    def forward(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        """Applies each map to both halves of the pair's values, with the fused kernel."""
        v_BP2TK = v_BHTK.unflatten(1, (-1, 2))
        own_BP2TK, other_BP2TK = (
            self.softmax(inputs, values.flatten(1, 2)).unflatten(1, (-1, 2)) for values in (v_BP2TK, v_BP2TK.flip(2))
        )
        # Head 0 of a pair gives map 1 times the first half and, with swapped values, times the second.
        of_1_BP2TK = torch.stack([own_BP2TK[:, :, 0], other_BP2TK[:, :, 0]], 2)
        of_2_BP2TK = torch.stack([other_BP2TK[:, :, 1], own_BP2TK[:, :, 1]], 2)
        return self.finish((of_1_BP2TK - self.factor() * of_2_BP2TK).flatten(1, 2)).to(v_BHTK.dtype)

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        p_BP2TT = torch.softmax(z_BHTT, -1).unflatten(1, (-1, 2))
        return (p_BP2TT[:, :, 0] - self.factor() * p_BP2TT[:, :, 1]).repeat_interleave(2, 1)

    def finish(self, mixed_BHTK: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        pair_BPTK = mixed_BHTK.unflatten(1, (-1, 2)).transpose(2, 3).flatten(-2)
        normed_BPTK = (1 - self.lambda_init) * self.norm(pair_BPTK)
        return normed_BPTK.unflatten(-1, (2, -1)).transpose(2, 3).flatten(1, 2).to(mixed_BHTK.dtype)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DifferentialConfig(MixingConfig):
    """(softmax_j<=i(s1_ij) - lambda softmax_j<=i(s2_ij)) V for each pair of heads, then an RMSNorm of the pair.

    Ye et al. 2024 (Differential Transformer, arXiv 2410.05258), eqs. 1 to 3.
    """

    name: Literal["differential"] = "differential"
    dot_product = True
    lambda_init: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The constant part of lambda, the same in all blocks. null: the paper's 0.8 - 0.6 exp(-0.3 l) in block l."""

    def lambda_of(self, block: int) -> float:
        return 0.8 - 0.6 * math.exp(-0.3 * block) if self.lambda_init is None else self.lambda_init

    def build(self, layer: LayerShape) -> MixingRule:
        return Differential(layer.scale, layer.head_dim, self.lambda_of(layer.block))

    def fits(self, config: "Architecture") -> None:
        super().fits(config)
        if config.model.heads % 2:
            raise ValueError(
                f"attention=differential takes pairs of heads, but model.heads={config.model.heads} is odd: "
                f"use an even number or attention=softmax"
            )
