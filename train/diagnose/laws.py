"""Power laws in N through measured learning rates or losses, with intervals from what lies off the line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.findings.effects import Effect, slope

LEVEL = 0.8
"""Probability of all intervals of a card."""


@dataclass(frozen=True)
class Law:
    """value = c N^exponent; values in natural logarithms."""

    exponent: Effect
    x: tuple[float, ...]
    y: tuple[float, ...]

    def at(self, n: float) -> Effect:
        """Returns the value that would be measured at this size, with the errors of line and measurement."""
        x, y = np.asarray(self.x), np.asarray(self.y)
        off, spread = math.log(n) - x.mean(), float(((x - x.mean()) ** 2).sum())
        value = float(y.mean()) + self.exponent.value * off
        if not math.isfinite(self.exponent.error):
            return Effect(value, math.inf, 0)
        noise = self.exponent.error**2 * spread
        error = math.sqrt(noise * (1 + 1 / len(x) + off**2 / spread))
        return Effect(value, error, self.exponent.freedom)


def law(n: Sequence[float], values: Sequence[float], noise: float = 0.0, freedom: float = 0.0) -> Law | None:
    """Returns the law through log values at sizes N, one a size, or None with fewer than two sizes.

    `noise` is the standard error of a value as measured, by the spread of seeds and the width of brackets, and
    `freedom` its degrees of freedom, 0 where they are unknown. Of what lies off the line and the noise the larger one
    counts: sizes can scatter of their own. Nothing lies off the line through two sizes, so that the noise is all that
    is known there.
    """
    x = np.log(np.asarray(n, dtype=float))
    if len(set(np.round(x, 6))) < 2:
        return None
    found = slope(x, values)
    least = noise / math.sqrt(float(((x - x.mean()) ** 2).sum()))
    if found.error < least or (freedom and not math.isfinite(found.error)):
        found = Effect(found.value, least, freedom or found.freedom)
    return Law(found, tuple(x.tolist()), tuple(float(v) for v in values))


def ends(effect: Effect) -> tuple[float, float] | None:
    """Returns the interval of a log value on its own scale, None where no spread is known."""
    half = effect.half(LEVEL)
    # An interval over many orders of magnitude says that nothing is known.
    return (math.exp(effect.value - half), math.exp(effect.value + half)) if half < 20 else None
