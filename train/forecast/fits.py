"""Curves of a metric over N and learning rate, chosen by held-out error, and forecasts from them with an interval.

Everything is in log10: a curve is linear in its coefficients, and a power law is a line. Arrays are of shape (points,).
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
    """One entry a run: log10 of its parameter count N, of its learning rate, and of the value that was read."""

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
    """A kind of curve: value = columns(n, lr) @ coefficients."""

    name: str
    what: str
    columns: Callable[[Array, Array], Array]
    """(points,), (points,) -> (points, coefficients)."""
    sizes: int
    """Different N that a fit needs."""
    pooled: bool = False
    """One curve for all learning rates, in place of one each."""
    robust: bool = False
    """Medians in place of least squares: Theil 1950, Sen 1968."""


def _powers(degree: int) -> Callable[[Array, Array], Array]:
    return lambda n, lr: np.stack([n**p for p in range(degree + 1)], axis=1)


FAMILIES = (
    Family("quadratic", "a quadratic in log N for each LR, as the paper's", _powers(2), 3),
    Family("line", "a power law in N for each LR", _powers(1), 2),
    Family("theil-sen", "a power law in N for each LR, by the median of slopes", _powers(1), 2, robust=True),
    Family(
        "plane", "a power law in N and LR, one for all LRs",
        lambda n, lr: np.stack([n**0, n, lr], axis=1), 2, pooled=True,
    ),
    Family(
        "surface", "a power law in N whose exponent is linear in log LR",
        lambda n, lr: np.stack([n**0, n, lr, n * lr], axis=1), 2, pooled=True,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """A family with its coefficients: of each learning rate, or of all of them under None."""

    family: Family
    coefficients: Mapping[float | None, Array]

    def __call__(self, n: Array, lr: Array) -> Array:
        """Values, (points,); nan at a learning rate that has no curve."""
        rows, values = self.family.columns(n, lr), np.full(n.shape, np.nan)
        for key, coefficients in self.coefficients.items():
            own = np.full(n.shape, True) if key is None else lr == key
            values[own] = rows[own] @ coefficients
        return values


def fit(family: Family, points: Points) -> Fitted:
    """Least squares, or Theil-Sen. Learning rates with too few sizes get no curve."""
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
    """Errors of forecasts of larger sizes from smaller ones, each from all sizes up to `cut` (rolling origin)."""

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
        """Mean absolute error over these folds."""
        keys = zip(self.cut.tolist(), self.n.tolist(), self.lr.tolist(), strict=True)
        return float(np.mean(np.abs(self.error)[[key in folds for key in keys]]))


def held_out(family: Family, points: Points) -> HeldOut:
    """Every size that fits serves as the largest seen one in turn; all larger ones are forecast."""
    parts: list[Array] = []
    for cut in points.sizes[family.sizes - 1 : -1]:
        later = points.where(points.n > cut)
        value = fit(family, points.where(points.n <= cut))(later.n, later.lr)
        rows = np.stack([np.full(later.n.shape, cut), later.n, later.lr, value - later.value])
        parts.append(rows[:, np.isfinite(value)])
    return HeldOut(*(np.concatenate(parts, axis=1) if parts else np.zeros((4, 0))))


@dataclass(frozen=True)
class Forecast:
    """A value in log10 as a t distribution."""

    mean: float
    spread: float
    df: int

    def interval(self, level: float) -> tuple[float, float]:
        """Central interval of that probability."""
        from scipy.stats import t

        half = float(t.ppf(0.5 + level / 2, self.df)) * self.spread
        return self.mean - half, self.mean + half

    def above(self, level: float) -> float:
        """Probability of a value above `level` (log10)."""
        from scipy.stats import t

        return float(t.cdf((self.mean - level) / self.spread, self.df)) if self.spread else float(self.mean > level)


@dataclass(frozen=True)
class Forecaster:
    """The family with the smallest held-out error, fitted to all points, with the scale of its errors.

    A forecast is off in proportion to how far in log N it goes beyond the largest size that it was made from; sigma is
    the root mean square of the held-out errors, each over its own distance. So what a curve misses beyond the sizes it
    has seen makes the interval, not what it misses within them. It is wide where there is only noise, and too narrow
    where all curves bend in a way that no family has. LOG.md has how often it held.
    """

    fitted: Fitted
    largest: float
    """log10 of the largest size that was seen."""
    sigma: float
    """Of an error at a distance of one decade, log10."""
    df: int
    errors: Mapping[str, float | None]
    """Mean absolute held-out error of each family over the folds that all of them have, log10; None: it has none."""
    held_out: int = field(default=0)
    """Errors behind sigma."""

    @property
    def family(self) -> Family:
        return self.fitted.family

    def at(self, n: float, lr: float) -> Forecast | None:
        """None for a learning rate without a curve."""
        value = float(self.fitted(np.array([n]), np.array([lr]))[0])
        return Forecast(value, self.sigma * float(distance(n, self.largest)), self.df) if math.isfinite(value) else None


def forecaster(points: Points, families: Sequence[Family] = FAMILIES) -> Forecaster:
    """ValueError where there are fewer than three sizes: nothing is left to hold out then."""
    if len(points.sizes) < 3:
        raise ValueError(f"{len(points.sizes)} sizes: one has to be held out from a fit to two at least")
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
    """Root mean square error at a distance of one decade, and its degrees of freedom: the points that were held out."""
    per_decade = errors.error / distance(errors.n, errors.cut)
    return float(np.sqrt(np.mean(per_decade**2))), len(set(zip(errors.n.tolist(), errors.lr.tolist(), strict=True)))


def distance(n: Array | float, largest: Array | float) -> Array:
    """Decades beyond the largest size seen, at least DOUBLING: nearer than that an error is noise, no smaller."""
    return np.maximum(np.asarray(n) - largest, DOUBLING)
