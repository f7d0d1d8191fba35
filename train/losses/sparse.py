"""Sparsemax and entmax losses. Shape suffixes: N tokens, M tokens not yet converged, V vocabulary."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from entmax import entmax_bisect_loss
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.probes import Stats
from train.losses.base import LOSS, LossConfig, Objective, Output, at_target

TokenLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


STEPS = 24
"""Newton's steps on a GPU, where looking how many are needed makes the host wait. 4 to 12 are."""


def threshold(x_NV: torch.Tensor, q: int) -> torch.Tensor:
    """Returns the tau of each token, [N, 1], that solves sum_v (x_v - tau)+^q = 1. x has maximum 0, and q is 1 or 2.

    Newton's method on the q-norm of (x - tau)+, which is convex in tau. It starts at tau = -1, where the norm is at
    least 1, and rises monotonically until rounding stops it, within 4 to 12 steps. For q = 1 this is Michelot's (1986)
    projection onto the simplex. Unlike the library's partial sort, its cost does not depend on the size of the support.
    """
    return (shrinking if x_NV.device.type == "cpu" else fixed)(x_NV, q)


def fixed(x_NV: torch.Tensor, q: int) -> torch.Tensor:
    """Returns the thresholds after STEPS steps."""
    tau_N1, above_NV = torch.full_like(x_NV[:, :1], -1), torch.empty_like(x_NV)
    for _ in range(STEPS):
        tau_N1 = torch.maximum(tau_N1, _newton(x_NV, tau_N1, q, above_NV))
    return tau_N1


def shrinking(x_NV: torch.Tensor, q: int) -> torch.Tensor:
    """Returns the thresholds after as many steps as each token needs."""
    tau_N1, above_NV = torch.full_like(x_NV[:, :1], -1), torch.empty_like(x_NV)
    active_M = torch.arange(len(x_NV))
    while len(active_M):
        tau_M1 = tau_N1[active_M]
        next_M1 = _newton(x_NV, tau_M1, q, above_NV[: len(active_M)])
        rising_M = (next_M1 > tau_M1)[:, 0]
        tau_N1[active_M] = torch.where(rising_M[:, None], next_M1, tau_M1)
        # Dropping converged tokens copies x, so it waits until they are half of the rest.
        if 2 * rising_M.sum() <= len(active_M):
            active_M, x_NV = active_M[rising_M], x_NV[rising_M]
    return tau_N1


def _newton(x_MV: torch.Tensor, tau_M1: torch.Tensor, q: int, above_MV: torch.Tensor) -> torch.Tensor:
    """Returns the taus after a step. Overwrites `above_MV`."""
    torch.sub(x_MV, tau_M1, out=above_MV).relu_()
    if q == 1:
        total_M1 = above_MV.sum(-1, keepdim=True)
        return tau_M1 + (total_M1 - 1) / above_MV.sign_().sum(-1, keepdim=True)
    norm_M1 = torch.linalg.vector_norm(above_MV, dim=-1, keepdim=True)
    return tau_M1 + (norm_M1 - 1) * norm_M1 / above_MV.sum(-1, keepdim=True)


class _Sparse(torch.autograd.Function):
    """Computes (p* - e_y).z + (1 - sum_v p*_v^alpha) / (alpha (alpha - 1)), [N], for alpha 1.5 or 2.

    p* = (z / q - tau)+^q with q = 1 / (alpha - 1), and tau such that p* sums to 1. The gradient is p* - e_y.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor, q: int):
        # A shift common to all logits does not change (p* - e_y).z, but it does change the rounding error.
        shifted_NV = (logits_NV - logits_NV.amax(-1, keepdim=True)).div_(q)
        tau_N1 = threshold(shifted_NV, q)
        p_NV = (shifted_NV - tau_N1).relu_().pow_(q)
        target_N = at_target(shifted_NV, targets_N)
        mean_N = shifted_NV.mul_(p_NV).sum(-1)
        # sum_v p*_v^alpha, as p*^(alpha - 1) = z / q - tau where p* > 0
        powered_N = mean_N - tau_N1[:, 0] * p_NV.sum(-1)
        ctx.save_for_backward(p_NV, targets_N)
        return q * (mean_N - target_N) + (1 - powered_N) * q**2 / (q + 1)

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor):
        p_NV, targets_N = ctx.saved_tensors
        # In place, as p* is not needed again. Autograd raises an error on a second backward pass.
        grad_NV = p_NV.mul_(grad_N[:, None])
        return grad_NV.scatter_add_(1, targets_N[:, None], -grad_N[:, None]), None, None


def fenchel_young(loss: TokenLoss, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Returns a loss of the entmax library, [N], accurate for large logits and NaN for non-finite ones.

    A shift common to all logits does not change (p* - e_y).z + Omega(p*), but it does change the rounding error, so
    the maximum is subtracted first. On non-finite logits, whose support is empty, the library would fail to index.
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
        return self.loss(output.logits_NV, targets_N).mean(), {}


def entmax_loss(alpha: float) -> TokenLoss:
    """Returns the alpha-entmax loss: by Newton's method for alpha 1.5 and 2, else by the library's bisection."""
    if alpha in (1.5, 2):
        return lambda logits_NV, targets_N: _Sparse.apply(logits_NV, targets_N, round(1 / (alpha - 1)))
    return lambda logits_NV, targets_N: fenchel_young(
        lambda z_NV, y_N: entmax_bisect_loss(z_NV, y_N, alpha), logits_NV, targets_N
    )


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Sparsemax(LossConfig):
    """(p* - e_y).z + (1 - ||p*||^2) / 2, p* = sparsemax(z) the projection of z onto the simplex; 0 from a margin of 1.

    Martins & Astudillo 2016 (arXiv 1602.02068). p* can be 0 at the target, so the reported loss is the cross-entropy of
    the softmax of the same logits.
    """

    name: Literal["sparsemax"] = "sparsemax"

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return SparseObjective(self, entmax_loss(2))


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Entmax(LossConfig):
    """(p* - e_y).z + (1 - sum_v p*_v^alpha) / (alpha (alpha - 1)), p* = alpha-entmax(z).

    Peters et al. 2019 (arXiv 1905.05702). alpha = 2 is sparsemax; alpha -> 1 approaches cross-entropy. The reported
    loss is the cross-entropy of the softmax of the same logits.
    """

    name: Literal["entmax"] = "entmax"
    alpha: Annotated[float, Field(ge=1.05)] = 1.5
    """Sparsity of p*. 1.5 and 2 use Newton's method, other values bisection, which is slower and inaccurate near 1."""

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return SparseObjective(self, entmax_loss(self.alpha))
