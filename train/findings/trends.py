"""Values of curves with their errors, how they move with N, and comparisons that may stay open."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.findings.arms import LEAST_DIFFERENCE, Arms, optimal_lr, pooled_std
from train.results.sensitivity import LRSensitivity, OverSeeds, lr_sensitivity
from train.results.verdict import Check

if TYPE_CHECKING:
    import pandas as pd

LEAST_ERROR = LEAST_DIFFERENCE / 2**1.5
"""Nats: the least standard error of a loss or a sensitivity of one curve, that at which two of them must differ by
LEAST_DIFFERENCE. It stands for the noise where no curve has several seeds."""
STAYS = 2.0
"""Factor over a ladder within which an optimal LR stays put: half, in log, of the fourfold fall that an LR in
proportion to 1/width makes on the mini ladder (widths 32 to 128), and less than one step of the paper's grid."""


@dataclass(frozen=True)
class Value:
    """A number with its standard error."""

    value: float
    error: float

    def __add__(self, other: Value) -> Value:
        return Value(self.value + other.value, math.hypot(self.error, other.error))

    def __sub__(self, other: Value) -> Value:
        return self + -other

    def __neg__(self) -> Value:
        return Value(-self.value, self.error)

    def __abs__(self) -> Value:
        return Value(abs(self.value), self.error)

    def times(self, factor: float) -> Value:
        return Value(self.value * factor, self.error * abs(factor))

    def log(self) -> Value:
        return Value(math.log(self.value), self.error / self.value)

    def above(self, limit: float) -> bool | None:
        """Whether it is above `limit`; None when that is within two standard errors."""
        return None if abs(self.value - limit) <= 2 * self.error else self.value > limit

    def below(self, limit: float) -> bool | None:
        return (-self).above(-limit)

    def numbers(self) -> dict[str, float]:
        return {"value": self.value, "error": self.error}

    def factor(self) -> str:
        """Text of a log: the factor, and what two standard errors are as a factor."""
        return f"{math.exp(self.value):.2f}x (within {math.exp(2 * self.error):.2f}x)"

    def __str__(self) -> str:
        return f"{self.value:+.3f} ± {self.error:.3f}"


def all_of(results: Iterable[bool | None]) -> bool | None:
    """False if any is, else None if any is open or there is none, else True."""
    found = list(results)
    if False in found:
        return False
    return None if None in found or not found else True


def spread(sweep: Arms, of: Callable[[LRSensitivity], float]) -> float | None:
    """Standard deviation between seeds of a number of a curve, pooled over all curves of several seeds."""
    return pooled_std([of(one) for one in curve.by_seed.values()] for curve in sweep.curves.values())


def mean(sweep: Arms, curve: OverSeeds, of: Callable[[LRSensitivity], float]) -> Value:
    """Of a number of the curve over its seeds; the error by the pooled spread, at least LEAST_ERROR."""
    error = (spread(sweep, of) or 0.0) / math.sqrt(len(curve.by_seed))
    return Value(float(np.mean([of(one) for one in curve.by_seed.values()])), max(error, LEAST_ERROR))


def best_loss(one: LRSensitivity) -> float:
    return one.best_loss


def sensitivity(one: LRSensitivity) -> float:
    return one.sensitivity


def mean_loss(one: LRSensitivity) -> float:
    """Over the LR grid, capped: what an LR taken at random from it costs."""
    return float(np.mean(one.losses))


def slope(points: Mapping[float, Value]) -> Value | None:
    """Of the least-squares line through the values, with the error that theirs make; None for less than two points."""
    if len(points) < 2:
        return None
    x = np.array(list(points)) - np.mean(list(points))
    weights = x / (x**2).sum()
    value = sum(w * p.value for w, p in zip(weights, points.values(), strict=True))
    return Value(float(value), math.hypot(*(w * p.error for w, p in zip(weights, points.values(), strict=True))))


def optimum(sweep: Arms, curve: OverSeeds) -> Value | None:
    """Log of `arms.optimal_lr`; None when a seed's best LR is at the grid's edge or its losses don't bend there.

    The error is that of the lowest point of a parabola through three losses that each have the spread of the best loss.
    """
    errors = []
    noise = max(spread(sweep, best_loss) or 0.0, LEAST_ERROR)
    for one in curve.by_seed.values():
        at = int(np.argmin(one.losses))
        lrs, losses = one.lrs[at - 1 : at + 2], np.array(one.losses[at - 1 : at + 2])
        if not 0 < at < len(one.lrs) - 1 or np.ptp(losses) == 0:
            return None
        tiny = 1e-6
        bent = [[_lowest(lrs, losses + sign * e, one.loss_init) for e in tiny * np.eye(3)] for sign in (1, -1)]
        errors.append(noise * math.hypot(*((a - b) / (2 * tiny) for a, b in zip(*bent, strict=True))))
    return Value(math.log(optimal_lr(curve)), math.hypot(*errors) / len(errors))


def _lowest(lrs: Sequence[float], losses: np.ndarray, loss_init: float) -> float:
    return math.log(optimal_lr(OverSeeds({0: lr_sensitivity(lrs, losses.tolist(), loss_init)})))


@dataclass(frozen=True)
class Optima:
    """The optimal LRs of an arm over N."""

    arm: str
    by_n: Mapping[int, Value]
    """Logs; sizes whose optimum is at the edge of the grid are left out."""
    at_edge: tuple[int, ...]
    gaps: str

    @property
    def move(self) -> Value | None:
        """Log of the factor by which the optimum moves from the smallest N to the largest, by the slope of its log
        against log N. None when runs are missing, or with an optimum at an edge."""
        if self.gaps or self.at_edge:
            return None
        found = slope({math.log(n): value for n, value in self.by_n.items()})
        return found and found.times(math.log(max(self.by_n) / min(self.by_n)))

    def numbers(self) -> dict[str, Any]:
        return {
            "sizes": [{"N": n, "lr": math.exp(v.value), "log_error": v.error} for n, v in self.by_n.items()],
            "at_edge": list(self.at_edge),
            "factor": math.exp(self.move.value) if self.move else None,
            "log_factor_error": self.move.error if self.move else None,
        }

    def __str__(self) -> str:
        parts = [f"{size_label(n)} {math.exp(value.value):.2g}" for n, value in self.by_n.items()]
        parts += [f"{size_label(n)} at the grid's edge" for n in self.at_edge]
        moved = f": moves {self.move.factor()}" if self.move else ""
        return f"{self.arm}: {self.gaps}optimal LR at N={', '.join(parts) or '-'}{moved}"


def optima(sweep: Arms, arm: str) -> Optima:
    found = {n: optimum(sweep, curve) for (n, of), curve in sweep.curves.items() if of == arm}
    inside = {n: value for n, value in found.items() if value is not None}
    return Optima(arm, inside, tuple(n for n, value in found.items() if value is None), sweep.gaps(arm))


def steadier_optimum(claim: str, sweep: Arms, standard: str, other: str) -> Check:
    """Passes when the optimal LR of `standard` falls with N and that of `other` moves less, by two standard errors.

    Fails when `other` moves more by as much; open between the two, when `standard` doesn't fall, so that there is
    nothing to steady, or when an optimum is at an edge of its grid.
    """
    a, b = optima(sweep, standard), optima(sweep, other)
    passed = None
    if a.move and b.move and a.move.below(0):
        passed = (abs(a.move) - abs(b.move)).above(0)
    return Check(claim, passed, {standard: a.numbers(), other: b.numbers()}, f"{a}; {b}")


def steady_optimum(claim: str, sweep: Arms, arm: str) -> Check:
    """Passes when the optimal LR moves by less than the factor STAYS over the ladder, up or down, and two standard
    errors don't reach it: a flat curve, whose optimum could be anywhere, stays open. Fails when it moves by more."""
    found = optima(sweep, arm)
    passed = abs(found.move).below(math.log(STAYS)) if found.move else None
    return Check(claim, passed, found.numbers() | {"allowed_factor": STAYS}, str(found))


def in_order(sweep: Arms) -> pd.DataFrame:
    """The ended runs, arm by arm."""
    order = {arm: i for i, arm in enumerate(sweep.names)}
    ended = sweep.runs[sweep.runs["ended"]]
    return ended.sort_values("arm", key=lambda arm: arm.map(order), kind="stable")


def over_n(sweep: Arms, arm: str, of: Callable[[LRSensitivity], float]) -> dict[int, tuple[float, float | None]]:
    """Mean and standard deviation over seeds of a number of the arm's curves, by N: what `against_size` draws."""
    found = {}
    for (n, name), curve in sweep.curves.items():
        if name == arm:
            values = [of(one) for one in curve.by_seed.values()]
            found[n] = (float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)
    return found


def optima_over_n(sweep: Arms, *names: str) -> dict[str, dict[int, tuple[float, float | None]]]:
    """Optimal LRs by arm and N with their errors, for `against_size`; those at an edge are left out."""
    found: dict[str, dict[int, tuple[float, float | None]]] = {}
    for arm in names:
        values = {n: (math.exp(v.value), v.error) for n, v in optima(sweep, arm).by_n.items()}
        found[arm] = {n: (lr, lr * error) for n, (lr, error) in values.items()}
    return found
