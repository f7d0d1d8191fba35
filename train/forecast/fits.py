"""Fits curves of a metric over N and learning rate, selects one by held-out error, and forecasts with an interval.

All values are in log10, where a power law is a line and every curve is linear in its coefficients. Arrays have shape
(points,).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
DOUBLING = math.log10(2)


@dataclass(frozen=True)
class Points:
    """Holds log10 of parameter count N, learning rate and measured value, one entry per run."""

    n: Array
    lr: Array
    value: Array

    def where(self, chosen: npt.NDArray[np.bool_]) -> Points:
        return Points(self.n[chosen], self.lr[chosen], self.value[chosen])

    @property
    def sizes(self) -> list[float]:
        return sorted(set(self.n.tolist()))


@dataclass(frozen=True)
class Family:
    """Describes a kind of curve: value = columns(n, lr) @ coefficients."""

    name: str
    what: str
    columns: Callable[[Array, Array], Array]
    """Returns the design matrix, (points, coefficients), for n and lr."""
    sizes: int
    """Minimum number of distinct N for a fit."""
    pooled: bool = False
    """Whether one curve covers all learning rates, instead of one curve each."""
    robust: bool = False
    """Whether to fit by Theil-Sen medians (Theil 1950, Sen 1968) instead of least squares."""


def _powers(degree: int) -> Callable[[Array, Array], Array]:
    return lambda n, lr: np.stack([n**p for p in range(degree + 1)], axis=1)


FAMILIES = (
    Family("quadratic", "a quadratic in log N for each LR, as in the paper", _powers(2), 3),
    Family("line", "a power law in N for each LR", _powers(1), 2),
    Family("theil-sen", "a power law in N for each LR, fitted by median slopes", _powers(1), 2, robust=True),
    Family(
        "plane", "one power law in N and LR for all LRs",
        lambda n, lr: np.stack([n**0, n, lr], axis=1), 2, pooled=True,
    ),
    Family(
        "surface", "a power law in N whose exponent is linear in log LR",
        lambda n, lr: np.stack([n**0, n, lr, n * lr], axis=1), 2, pooled=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """Holds a family with its coefficients by learning rate; the key None stands for all of them."""

    family: Family
    coefficients: Mapping[float | None, Array]

    def __call__(self, n: Array, lr: Array) -> Array:
        """Returns the values, (points,). They are NaN for learning rates without a curve."""
        rows, values = self.family.columns(n, lr), np.full(n.shape, np.nan)
        for key, coefficients in self.coefficients.items():
            own = np.full(n.shape, True) if key is None else lr == key
            values[own] = rows[own] @ coefficients
        return values


def fit(family: Family, points: Points) -> Fitted:
    """Fits a family to points. Learning rates with too few sizes get no curve."""
    from scipy.stats import theilslopes

    groups = {None: points} if family.pooled else {lr: points.where(points.lr == lr) for lr in set(points.lr.tolist())}
    coefficients: dict[float | None, Array] = {}
    for key, group in groups.items():
        rows = family.columns(group.n, group.lr)
        if len(group.sizes) < family.sizes or np.linalg.matrix_rank(rows) < rows.shape[1]:
            continue
        if family.robust:
            line = theilslopes(group.value, group.n, method="joint")
            coefficients[key] = np.array([line.intercept, line.slope])
        else:
            coefficients[key] = (np.linalg.pinv(rows) @ group.value).astype(np.float64)
    return Fitted(family, coefficients)


@dataclass(frozen=True)
class HeldOut:
    """Holds errors of forecasts of larger sizes, each from all sizes up to its `cut` (rolling origin)."""

    cut: Array
    n: Array
    lr: Array
    error: Array
    """Forecast minus value, log10."""

    def __len__(self) -> int:
        return len(self.error)

    @property
    def folds(self) -> set[tuple[float, float, float]]:
        return set(zip(self.cut.tolist(), self.n.tolist(), self.lr.tolist(), strict=True))

    def mean_error(self, folds: set[tuple[float, float, float]]) -> float:
        """Returns the mean absolute error over these folds."""
        keys = zip(self.cut.tolist(), self.n.tolist(), self.lr.tolist(), strict=True)
        return float(np.mean(np.abs(self.error)[[key in folds for key in keys]]))


def held_out(family: Family, points: Points) -> HeldOut:
    """Takes each size in turn as the largest seen one and forecasts all larger ones."""
    parts: list[Array] = []
    for cut in points.sizes[family.sizes - 1 : -1]:
        later = points.where(points.n > cut)
        value = fit(family, points.where(points.n <= cut))(later.n, later.lr)
        rows = np.stack([np.full(later.n.shape, cut), later.n, later.lr, value - later.value])
        parts.append(rows[:, np.isfinite(value)])
    return HeldOut(*(np.concatenate(parts, axis=1) if parts else np.zeros((4, 0))))


@dataclass(frozen=True)
class Forecast:
    """Represents a forecast value in log10 by a t distribution."""

    mean: float
    spread: float
    df: int

    def interval(self, level: float) -> tuple[float, float]:
        """Returns the central interval of probability `level`."""
        from scipy.stats import t

        half = float(t.ppf(0.5 + level / 2, self.df)) * self.spread
        return self.mean - half, self.mean + half

    def above(self, level: float) -> float:
        """Returns the probability of a value above `level` (log10)."""
        from scipy.stats import t

        return float(t.cdf((self.mean - level) / self.spread, self.df)) if self.spread else float(self.mean > level)


@dataclass(frozen=True)
class Forecaster:
    """Holds the family with the smallest held-out error, fitted to all points, and the scale of its errors.

    The error of a forecast is assumed proportional to its distance in log N from the largest size used. sigma is the
    root mean square of held-out errors, each divided by its distance. The interval thus reflects extrapolation errors
    rather than residuals. It is too wide if there is only noise, and too narrow if the data bend in a way that no
    family can follow. LOG.md reports the measured coverage.
    """

    fitted: Fitted
    largest: float
    """log10 of the largest size seen."""
    sigma: float
    """Error at a distance of one decade, log10."""
    df: int
    errors: Mapping[str, float | None]
    """Mean absolute held-out error (log10) of each family over the folds they share. None if it can't be fitted."""
    held_out: int = field(default=0)
    """Number of held-out errors that sigma is estimated from."""

    @property
    def family(self) -> Family:
        return self.fitted.family

    def at(self, n: float, lr: float) -> Forecast | None:
        """Returns the forecast at log10 N and LR, or None for a learning rate without a curve."""
        value = float(self.fitted(np.array([n]), np.array([lr]))[0])
        return Forecast(value, self.sigma * float(distance(n, self.largest)), self.df) if math.isfinite(value) else None


def forecaster(points: Points, families: Sequence[Family] = FAMILIES) -> Forecaster:
    """Selects and fits a family. Raises ValueError unless a learning rate has three sizes, one of them to hold out."""
    if len(points.sizes) < 3:
        raise ValueError(f"{len(points.sizes)} sizes, but a forecast needs three: two to fit and one to hold out")
    found = {family.name: held_out(family, points) for family in families}
    able = [family for family in families if len(found[family.name])]
    if not able:
        raise ValueError("no learning rate has three sizes")
    common = set.intersection(*(found[family.name].folds for family in able))
    errors = {family.name: found[family.name].mean_error(common) if family in able else None for family in families}
    best = min(able, key=lambda family: errors[family.name] or 0.0)
    own = found[best.name]
    return Forecaster(fit(best, points), points.sizes[-1], *scale(own), errors, len(own))


def scale(errors: HeldOut) -> tuple[float, int]:
    """Returns the root mean square error per decade and its degrees of freedom, the number of points held out."""
    per_decade = errors.error / distance(errors.n, errors.cut)
    return float(np.sqrt(np.mean(per_decade**2))), len(set(zip(errors.n.tolist(), errors.lr.tolist(), strict=True)))


def distance(n: Array | float, largest: Array | float) -> Array:
    """Returns the decades beyond the largest size, at least DOUBLING, since closer forecasts only have noise."""
    return np.maximum(np.asarray(n) - largest, DOUBLING)
