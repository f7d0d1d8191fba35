"""Critical sharpness: the curvature along the update, from forward passes alone.

2 / LR_c, where LR_c is the smallest learning rate at which the step raises the loss of its own batch (Kalra et al.
2026, arXiv 2601.16979; facebookresearch/scalable-curvature). On a quadratic with Hessian H, gradient g and step -LR u
this is u.H u / g.u, which for u = g lies between the smallest and the largest eigenvalue.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

MOST = 24
"""Factors of 2 from the guess at which the search gives up."""
TOLERANCE = 1 / 32
"""The search ends where an estimate moves by less than this share of it, or the bracket is as narrow."""


def critical_lr(loss: Callable[[float], float], before: float, guess: float) -> float | None:
    """Returns the LR at which the loss after the step first exceeds `before`; None if it doesn't near the guess.

    Losses are computed at powers of 2 from the one next to the guess until the answer is between two of them. Between
    them the root of (loss - before) / LR is interpolated, a line in LR on a quadratic, so that 3 losses do if the guess
    is right to a factor of 2; where the line and the parabola through 3 losses disagree, more are computed. If the loss
    crosses `before` once, the result depends on the guess by no more than the tolerance.
    """

    def rise(lr: float) -> float:
        rate = (loss(lr) - before) / lr
        return rate if math.isfinite(rate) else math.inf

    low = 2.0 ** round(math.log2(guess))
    known = {low: rise(low)}
    down = known[low] > 0
    for _ in range(MOST):
        end = low / 2 if down else 2 * low
        known[end] = rise(end)
        if (known[end] > 0) != down:
            low = min(low, end)
            break
        low = end
    else:
        return None
    high, at, sure = 2 * low, math.nan, True
    while True:
        last, at = at, _root(known, low, high) if sure else (low + high) / 2
        if (sure and abs(at - last) <= TOLERANCE * at) or high - low <= TOLERANCE * low:
            return at
        known[at] = rise(at)
        # On a wall the line hardly leaves the lower end, whose rate its own then equals.
        sure = abs(known[at]) <= min(-known[low], known[high]) / 2
        low, high = (low, at) if known[at] > 0 else (at, high)


def _root(known: Mapping[float, float], low: float, high: float) -> float:
    """Where the parabola through three known rates is 0 between two LRs; the line where it isn't or no third is known;
    the middle where a rate is infinite."""
    (x, f), (y, g) = ((lr, known[lr]) for lr in (low, high))
    if math.isinf(g):
        return (low + high) / 2
    line = low - f * (high - low) / (g - f)
    others = [lr for lr in known if lr not in (low, high) and math.isfinite(known[lr])]
    if not others:
        return line
    third = min(others, key=lambda lr: abs(math.log(lr / line)))
    slope = (g - f) / (y - x)
    bend = ((known[third] - f) / (third - x) - slope) / (third - y)
    # f + slope (lr - x) + bend (lr - x) (lr - y): its rate is negative at x and positive at y, so one root is between.
    b, c = slope - bend * (y - x), f
    root = math.sqrt(max(b * b - 4 * bend * c, 0.0))
    return x - 2 * c / (b + root) if b + root > 0 else line


def adam_edge(lr: float, beta1: float) -> float:
    """Returns the sharpness of the preconditioned Hessian at which Adam's steps become unstable, 38 / LR at beta1 0.9.

    (2 + 2 beta1) / ((1 - beta1) LR), for the Hessian multiplied by the inverse of sqrt(v) + eps. Cohen et al. 2022
    (Adaptive gradient methods at the edge of stability, arXiv 2207.14484).
    """
    return (2 + 2 * beta1) / ((1 - beta1) * lr)
