"""Critical sharpness: the curvature along the update, from forward passes alone.

2 / LR_c, where LR_c is the smallest learning rate at which the step raises the loss of its own batch (Kalra et al.
2026, arXiv 2601.16979; facebookresearch/scalable-curvature). On a quadratic with Hessian H, gradient g and step -LR u
this is u.H u / g.u, which for u = g lies between the smallest and the largest eigenvalue.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

MOST = 24
"""Factors of 2 from the guess at which the search gives up."""
TOLERANCE = 1 / 32
"""Largest relative error."""
LARGE = 1e6
"""Stands for a rate that is not finite."""
ROUNDING = 8 * 2.0**-23
"""Relative change of an fp32 loss that may be rounding."""


def critical_lr(loss: Callable[[float], float], before: float, guess: float) -> float | None:
    """Returns the LR at which the loss after the step first exceeds `before`; None if it doesn't near the guess,
    or if smaller steps raise it too until the change is lost in rounding.

    Losses are computed at powers of 2 from the one next to the guess until the answer is between two of them. Between
    them Brent's method finds the root of (loss - before) / LR, a line in LR on a quadratic, so that 3 or 4 losses do if
    the guess is right to a factor of 2. If the loss crosses `before` once, the guess changes the result by no more than
    the tolerance.
    """

    @cache
    def rise(lr: float) -> float:
        change = loss(lr) - before
        if abs(change) <= ROUNDING * abs(before):
            return 0.0
        rate = change / lr
        return rate if math.isfinite(rate) else LARGE

    low = 2.0 ** round(math.log2(guess))
    down = rise(low) >= 0
    for _ in range(MOST):
        end = low / 2 if down else 2 * low
        if rise(low) == rise(end) == 0:
            return None
        if (rise(end) < 0) == down:
            low = min(low, end)
            break
        low = end
    else:
        return None
    from scipy.optimize import brentq  # takes half a second

    return float(brentq(rise, low, 2 * low, rtol=TOLERANCE))


def adam_edge(lr: float, beta1: float) -> float:
    """Returns the sharpness of the preconditioned Hessian at which Adam's steps become unstable, 38 / LR at beta1 0.9.

    (2 + 2 beta1) / ((1 - beta1) LR), for the Hessian multiplied by the inverse of sqrt(v) + eps. Cohen et al. 2022
    (Adaptive gradient methods at the edge of stability, arXiv 2207.14484).
    """
    return (2 + 2 * beta1) / ((1 - beta1) * lr)
