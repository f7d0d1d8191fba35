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
        """Returns the value that a run of this size would show, with the errors of line and measurement."""
        x, y = np.asarray(self.x), np.asarray(self.y)
        off, spread = math.log(n) - x.mean(), float(((x - x.mean()) ** 2).sum())
        value = float(y.mean()) + self.exponent.value * off
        if not math.isfinite(self.exponent.error):
            return Effect(value, math.inf, 0)
        noise = self.exponent.error**2 * spread
        error = math.sqrt(noise * (1 + 1 / len(x) + off**2 / spread))
        return Effect(value, error, self.exponent.freedom)


def law(n: Sequence[float], values: Sequence[float], reading: float = 0.0) -> Law | None:
    """Returns the law through log values at sizes N, or None with fewer than two sizes.

    `reading` is the standard error of a single value, such as from the width of its bracket. The scatter around the
    line contains it; few values can scatter less by chance, and are then taken to scatter as much.
    """
    x = np.log(np.asarray(n, dtype=float))
    if len(set(np.round(x, 6))) < 2:
        return None
    found = slope(x, values)
    least = reading / math.sqrt(float(((x - x.mean()) ** 2).sum()))
    exponent = Effect(found.value, max(found.error, least), found.freedom)
    return Law(exponent, tuple(x.tolist()), tuple(float(v) for v in values))


def ends(effect: Effect) -> tuple[float, float] | None:
    """Returns the interval of a log value on its own scale, None where no spread is known."""
    half = effect.half(LEVEL)
    # An interval over many orders of magnitude says that nothing is known.
    return (math.exp(effect.value - half), math.exp(effect.value + half)) if half < 20 else None
