"""Forecasts a target size: values and probabilities at each learning rate, and the N at which levels are crossed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from train.forecast.fits import Forecaster, Points, forecaster
from train.forecast.measurements import Quantity

LEVEL = 0.9
BEYOND = 3.0
"""Decades beyond the target within which crossings are searched."""
GRID = 400


@dataclass(frozen=True)
class Crossing:
    """Holds the N at which the probability of passing a level reaches 50 % (n), 5 % (low) and 95 % (high).

    None stands for an N more than BEYOND decades beyond the target.
    """

    n: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ForecastRow:
    """Holds the forecast for the target at one learning rate."""

    lr: float
    value: float
    low: float
    high: float
    """`low` and `high` bound the central interval of probability LEVEL."""
    passes: dict[float, float]
    """Probability that the target is beyond a level, by level."""
    crossing: dict[float, Crossing]
    measured: list[float]
    """Values of the target's own runs, if the sweep has any."""
    broken: list[bool]


@dataclass(frozen=True)
class Prediction:
    """Holds the forecast of a quantity for the target at all learning rates."""

    quantity: Quantity
    target: float
    seen: Points
    """The points that the forecast is fitted to."""
    model: Forecaster
    rows: list[ForecastRow]

    def lr_crossing(self, level: float) -> float | None:
        """Returns the LR at which the target reaches the level, log-log interpolated, or None outside the LR grid."""
        side = [(math.log10(row.lr), math.log10(row.value / level)) for row in self.rows]
        for (x0, y0), (x1, y1) in itertools.pairwise(side):
            if y0 * y1 <= 0 and y0 != y1:
                return float(10 ** (x0 + (x1 - x0) * y0 / (y0 - y1)))
        return None


def predict(
    quantity: Quantity, seen: Points, target: float, later: Sequence[tuple[float, float, bool]] = ()
) -> Prediction:
    """Forecasts the target from smaller sizes. `later` has (LR, value, broken) of its own runs for comparison."""
    model = forecaster(seen)
    rows = []
    for lr in sorted(set(seen.lr.tolist())):
        forecast = model.at(math.log10(target), lr)
        if forecast is None:
            continue
        low, high = forecast.interval(LEVEL)
        rate = float(f"{10**lr:.6g}")
        own = [(value, broken) for at, value, broken in later if math.isclose(at, rate, rel_tol=1e-6)]
        rows.append(
            ForecastRow(
                lr=rate, value=10**forecast.mean, low=10**low, high=10**high,
                passes={level: beyond(quantity, model, math.log10(target), lr, level) for level in quantity.levels},
                crossing={level: crossing(quantity, seen, model, target, lr, level) for level in quantity.levels},
                measured=[value for value, _ in own], broken=[broken for _, broken in own],
            )
        )  # fmt: skip
    return Prediction(quantity, target, seen, model, rows)


def beyond(quantity: Quantity, model: Forecaster, n: float, lr: float, level: float) -> float:
    """Returns the probability that the quantity is on the bad side of the level. `n` and `lr` are in log10."""
    forecast = model.at(n, lr)
    assert forecast is not None
    above = forecast.above(math.log10(level))
    return above if quantity.rises else 1 - above


def crossing(quantity: Quantity, seen: Points, model: Forecaster, target: float, lr: float, level: float) -> Crossing:
    """Finds the N from which the probability of trouble exceeds 5, 50 and 95 %, starting at the smallest seen size."""
    grid = np.linspace(seen.sizes[0], math.log10(target) + BEYOND, GRID)
    chance = np.array([beyond(quantity, model, float(n), lr, level) for n in grid])

    def first(p: float) -> float | None:
        if not (chance >= p).any():
            return None
        i = int(np.argmax(chance >= p))
        share = (p - chance[i - 1]) / (chance[i] - chance[i - 1]) if i else 0.0
        return float(10 ** (grid[i - 1] + share * (grid[i] - grid[i - 1]) if i else grid[0]))

    return Crossing(first(0.5), first(0.05), first(0.95))
