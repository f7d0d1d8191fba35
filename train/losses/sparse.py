"""Sparsemax and entmax losses, through the `entmax` library. Shape suffixes: N tokens, V vocabulary."""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from entmax import entmax15_loss, entmax_bisect_loss, sparsemax_loss
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.probes import Stats
from train.losses.base import LOSS, LossConfig, Objective, Output

TokenLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# The library sorts this many logits first, and more only for tokens with a larger support: exact at any value.
SORTED = 128


def fenchel_young(loss: TokenLoss, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """A loss of the library, [N], in which large logits don't drown it and non-finite ones give NaN.

    (p* - e_y).z + Omega(p*) ignores a common shift of z, but its rounding error doesn't. Non-finite logits have an
    empty support, which the library would look up.
    """
    shifted_NV = logits_NV - logits_NV.detach().amax(-1, keepdim=True)
    finite_N = shifted_NV.isfinite().all(-1)
    loss_N = loss(shifted_NV.where(finite_N[:, None], 0.0), targets_N)
    return loss_N.where(finite_N, math.nan)


class SparseObjective(Objective):
    def __init__(self, config: LossConfig, loss: TokenLoss) -> None:
        super().__init__(config)
        self.loss = loss

    def main(self, output: Output, targets_N: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        return fenchel_young(self.loss, output.logits_NV, targets_N).mean(), {}


def entmax_loss(alpha: float) -> TokenLoss:
    """By sorting where a closed form exists, by bisection elsewhere."""
    if alpha == 2:
        return lambda logits_NV, targets_N: sparsemax_loss(logits_NV, targets_N, SORTED)
    if alpha == 1.5:
        return lambda logits_NV, targets_N: entmax15_loss(logits_NV, targets_N, SORTED)
    return lambda logits_NV, targets_N: entmax_bisect_loss(logits_NV, targets_N, alpha)


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Sparsemax(LossConfig):
    """(p* - e_y).z + (1 - ||p*||^2) / 2, p* = sparsemax(z) the projection of z onto the simplex; 0 from a margin of 1.

    Martins & Astudillo 2016 (arXiv 1602.02068). p* can be 0 at the target; what is reported is the
    cross-entropy of the softmax of the same logits.
    """

    name: Literal["sparsemax"] = "sparsemax"

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return SparseObjective(self, entmax_loss(2))


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Entmax(LossConfig):
    """(p* - e_y).z + (1 - sum_v p*_v^alpha) / (alpha (alpha - 1)), p* = alpha-entmax(z).

    Peters et al. 2019 (arXiv 1905.05702); alpha = 2 is sparsemax, alpha -> 1 cross-entropy. What is reported
    is the cross-entropy of the softmax of the same logits.
    """

    name: Literal["entmax"] = "entmax"
    alpha: Annotated[float, Field(ge=1.05)] = 1.5
    """How sparse p* is; 1.5 and 2 are by sorting, others by bisection, which is slower and breaks down near 1."""

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return SparseObjective(self, entmax_loss(self.alpha))
