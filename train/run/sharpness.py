"""Critical sharpness: the curvature along the update, from forward passes alone.

2 / LR_c, where LR_c is the smallest learning rate at which the step raises the loss of its own batch (Kalra et al.
2026, arXiv 2601.16979; facebookresearch/scalable-curvature). On a quadratic with Hessian H, gradient g and step -LR u
this is u.H u / g.u, which for u = g lies between the smallest and the largest eigenvalue.
"""

from __future__ import annotations

import math
from collections.abc import Callable

MOST = 24
"""Factors of 2 from the guess at which the search gives up."""
HALVINGS = 4
"""Steps of bisection within a factor of 2, so that the error is at most 1/32 of the lower end."""


def critical_lr(loss: Callable[[float], float], before: float, guess: float) -> float | None:
    """Returns the LR at which the loss after the step first exceeds `before`; None if it doesn't near the guess.

    Losses are computed at powers of 2 from the one next to the guess until the answer is between two of them, and then
    by bisection: 6 if the guess is right to a factor of 2. If the loss crosses `before` once, the result doesn't depend
    on the guess.
    """

    def rises(lr: float) -> bool:
        return not loss(lr) <= before  # so that NaN counts as a rise

    low = 2.0 ** round(math.log2(guess))
    down = rises(low)
    for _ in range(MOST):
        low *= 0.5 if down else 1
        if rises(low if down else 2 * low) != down:
            break
        low *= 1 if down else 2
    else:
        return None
    high = 2 * low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if rises(middle) else (middle, high)
    return (low + high) / 2


def adam_edge(lr: float, beta1: float) -> float:
    """Returns the sharpness of the preconditioned Hessian at which Adam's steps become unstable, 38 / LR at beta1 0.9.

    (2 + 2 beta1) / ((1 - beta1) LR), for the Hessian multiplied by the inverse of sqrt(v) + eps. Cohen et al. 2022
    (Adaptive gradient methods at the edge of stability, arXiv 2207.14484).
    """
    return (2 + 2 * beta1) / ((1 - beta1) * lr)
