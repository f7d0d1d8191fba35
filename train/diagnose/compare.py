"""Compares the critical LRs of two recipes, trained at the same sizes and seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from train.diagnose.card import Interval, Readings
from train.diagnose.laws import LEVEL, ends
from train.findings.effects import Effect, over


@dataclass(frozen=True)
class Comparison:
    """How far a change moves the critical LR."""

    name: str
    factor: Interval | None
    """Critical LR of the changed recipe over that of the first; None if neither breaks or one has no curve."""
    bound: str
    """at least or at most, where one of the two never breaks in the window at some size; otherwise empty."""
    sure: bool
    """Whether the factor is more than noise, by an interval that allows for the number of comparisons."""
    pairs: int
    runs: int = 0

    def text(self) -> str:
        """Returns the factor and whether it is more than noise, in words."""
        if self.factor is None:
            return "no critical LRs to compare"
        found = self.factor
        size = f"{self.bound} {found.value:.2g}x".strip()
        if found.low is None or found.high is None:
            return f"{size} (no spread known)"
        return f"{size} ({found.low:.2g} to {found.high:.2g}), {'more than noise' if self.sure else 'within noise'}"


def compare(first: Readings, second: Readings, name: str, noise: Readings | None = None, among: int = 1) -> Comparison:
    """Compares pairs of curves of the same size and seed. A curve that never breaks counts as the highest LR.

    `noise` are readings at more sizes or seeds, which tell how much seeds differ if there is only one pair. Of `among`
    comparisons of changes without effect, one or more is called more than noise with a probability of 1 - LEVEL.
    """
    pairs = [
        (size, a, b, y - x) for size in first.curves for a in first.curves[size] for b in second.curves[size]
        if a.seed == b.seed and (a.critical or b.critical) and size not in first.untrained | second.untrained
        and (x := first.at_least(a)) is not None and (y := second.at_least(b)) is not None
    ]  # fmt: skip
    if not pairs:
        return Comparison(name, None, "", False, 0)
    of_sizes, *sides, differences = zip(*pairs, strict=True)
    effect = over(differences)
    open_a, open_b = (any(not curve.critical for curve in side) for side in sides)
    bound = "at least" if open_b and not open_a else "at most" if open_a and not open_b else "about" if open_a else ""
    reading = sum(of.reading(side) ** 2 for of, side in zip((first, second), sides, strict=True)) / len(set(of_sizes))
    effect = with_noise(effect, [first, second, *([noise] if noise else [])], reading, len(pairs))
    found = ends(effect)
    sure = found is not None and abs(effect.value) > effect.half(1 - (1 - LEVEL) / among)
    if bound in ("about", "at least" if effect.value < 0 else "at most"):
        sure = False  # The bound leaves room for no effect.
    return Comparison(name, Interval.of(effect), bound, sure, len(pairs))


def with_noise(effect: Effect, of: list[Readings], reading: float, pairs: int) -> Effect:
    """Adds the variance of reading brackets. A single pair has the noise of seeds that the other curves show."""
    if pairs > 1:
        return Effect(effect.value, math.sqrt(effect.error**2 + reading), effect.freedom)
    known = [(std, freedom) for std, freedom in (r.spread("critical") for r in of) if std is not None]
    if not known:
        return effect
    std, freedom = max(known, key=lambda pair: pair[1])
    return Effect(effect.value, math.sqrt(2 * std**2 + reading), freedom)


def best_first(found: list[Comparison]) -> list[Comparison]:
    """Returns the comparisons from the one that raises the critical LR most to the one that lowers it most."""
    return sorted(found, key=lambda c: -math.inf if c.factor is None else c.factor.value, reverse=True)


def table(found: Sequence[Comparison]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Returns titles and cells. Numbers of runs are those that a change took beyond the recipe's own."""
    if not any(c.runs for c in found):
        return ("change", "critical LR"), [[c.name, c.text()] for c in found]
    return ("change", "critical LR", "runs"), [[c.name, c.text(), str(c.runs)] for c in found]
