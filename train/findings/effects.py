"""Effects with their 95 % intervals, and what an effect makes of a claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.results.verdict import Outcome


@dataclass(frozen=True)
class Effect:
    """A number with its standard error, of so many degrees of freedom; infinite where no spread is known."""

    value: float
    error: float
    freedom: float

    def half(self, level: float = 0.95) -> float:
        """Returns half the length of the interval that holds the number with this probability."""
        if self.error == 0.0:
            return 0.0
        if not (self.freedom > 0 and math.isfinite(self.error)):
            return math.inf
        from scipy.stats import t as student  # takes half a second

        return self.error * float(student.ppf((1 + level) / 2, self.freedom))

    def __neg__(self) -> Effect:
        return Effect(-self.value, self.error, self.freedom)

    def __sub__(self, other: Effect) -> Effect:
        """Returns the difference, with freedom by Welch and Satterthwaite."""
        a, b = self.error**2, other.error**2
        parts = sum(e**2 / f for e, f in ((a, self.freedom), (b, other.freedom)) if e and f > 0)
        unknown = any(e and not (f > 0 and math.isfinite(e)) for e, f in ((a, self.freedom), (b, other.freedom)))
        freedom = 0.0 if unknown else (a + b) ** 2 / parts if parts else math.inf
        return Effect(self.value - other.value, math.sqrt(a + b), freedom)

    def times(self, factor: float) -> Effect:
        return Effect(self.value * factor, self.error * abs(factor), self.freedom)

    def magnitude(self) -> Effect:
        return Effect(abs(self.value), self.error, self.freedom)

    def numbers(self) -> dict[str, Any]:
        return {"value": self.value, "half_interval": self.half()}

    def text(self, log: bool) -> str:
        half = self.half()
        if log:
            return f"{_short(math.exp(self.value))}x" + (
                f" (within {_short(math.exp(half))}x)" if half < 50 else " (no spread known)"
            )
        return f"{self.value:+.3f}" + (f" ± {half:.3f}" if math.isfinite(half) else " (no spread known)")


def _short(value: float) -> str:
    return f"{value:.3g}"


def over(found: Sequence[float] | np.ndarray) -> Effect:
    """Returns the mean of numbers, with the error by their spread."""
    known = np.asarray(found, dtype=float)
    if len(known) < 2:
        return Effect(float(known.mean()) if len(known) else math.nan, math.inf, 0)
    return Effect(float(known.mean()), float(known.std(ddof=1)) / math.sqrt(len(known)), len(known) - 1)


def over_seeds(found: Sequence[tuple[float, float, float]]) -> tuple[float, list[float]]:
    """Returns the mean of numbers of (LR, seed, value), and what each seed is off by, the LRs' own means taken out.

    LRs are fixed by the grid, so that seeds alone are draws: their deviations tell the error of the mean, `of_seeds`.
    """
    lrs, seeds, numbers = (np.asarray(column, dtype=float) for column in zip(*found, strict=True))
    off = numbers.copy()
    shared = np.zeros(len(numbers), dtype=bool)
    for lr in np.unique(lrs):
        at = lrs == lr
        with np.errstate(invalid="ignore"):  # of infinities
            off[at] -= numbers[at].mean()
        shared[at] = at.sum() > 1
    return float(numbers.mean()), [float(off[shared & (seeds == s)].mean()) for s in np.unique(seeds[shared])]


def of_seeds(mean: float, of: int, groups: Sequence[Sequence[float]]) -> Effect:
    """Returns a mean over so many seeds, with the error by deviations of seeds, pooled over groups such as sizes."""
    freedom = sum(max(0, len(group) - 1) for group in groups)
    if not freedom or not of:
        return Effect(mean, math.inf, 0)
    variance = sum(float(np.square(group).sum()) for group in groups if len(group) > 1) / freedom
    return Effect(mean, math.sqrt(variance / of), freedom)


def slope(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, of: Any = None) -> Effect:
    """Returns the slope of the least-squares line, with the error by what lies off it; NaN where x has one value.

    `of` is a mask of the points whose distances from the line tell the error; all by default.
    """
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(a) < 2 or np.ptp(a) == 0:
        return Effect(math.nan, math.inf, 0)
    off = a - a.mean()
    value = float((off * b).sum() / (off**2).sum())
    rest = (b - b.mean() - value * off)[slice(None) if of is None else np.asarray(of, dtype=bool)]
    if len(rest) <= 2:
        return Effect(value, math.inf, 0)
    error = math.sqrt(float((rest**2).sum()) / (len(rest) - 2) / float((off**2).sum()))
    return Effect(value, error if error > 1e-12 * max(1.0, abs(value)) else 0.0, len(rest) - 2)


def directed(effect: Effect, least: float) -> Outcome:
    """Returns the outcome of an effect that is claimed to be at least `least`; an effect against it has the other sign
    and that size. For a `least` of zero or less, the claim is that it is not below it."""
    half = effect.half()
    if math.isnan(effect.value):
        return "open"
    if effect.value >= least and effect.value - half > min(least, 0.0):
        return "holds"
    if effect.value <= -abs(least) and effect.value + half < min(least, 0.0):
        return "against"
    return "absent" if effect.value + half < least else "open"


def equivalent(effect: Effect, within: float) -> Outcome:
    """Returns the outcome of an effect that is claimed to be smaller than `within`, up or down: two one-sided t-tests
    at 5 %."""
    if abs(effect.value) + effect.half(0.90) < within:
        return "holds"
    return "against" if abs(effect.value) - effect.half() > within else "open"


def beyond(effect: Effect, level: float, above: bool) -> Outcome:
    """Returns the outcome of a number that is claimed to lie above a level, or below it: open where its interval
    contains the level."""
    off = (effect.value - level) * (1 if above else -1)
    if math.isnan(off):
        return "open"
    if math.isinf(effect.value):
        return "holds" if off > 0 else "against"
    return "holds" if off > effect.half() else "against" if off < -effect.half() else "open"
