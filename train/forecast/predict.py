"""A forecast for a target size: its values and probabilities at each learning rate, and where levels are crossed."""

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
"""Decades beyond the target in which crossings are looked for."""
GRID = 400


@dataclass(frozen=True)
class Crossing:
    """The N from which a level is passed, with the N at which that has a probability of 5 % and of 95 %.

    None: not within BEYOND decades beyond the target.
    """

    n: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ForecastRow:
    """What is forecast for one learning rate of the target."""

    lr: float
    value: float
    low: float
    high: float
    """Central interval of probability LEVEL."""
    passes: dict[float, float]
    """By level: the probability that the target is beyond it."""
    crossing: dict[float, Crossing]
    measured: list[float]
    """Of the target's runs, where the sweep has them."""
    broken: list[bool]


@dataclass(frozen=True)
class Prediction:
    quantity: Quantity
    target: float
    seen: Points
    """The points that the forecast is made from."""
    model: Forecaster
    rows: list[ForecastRow]

    def lr_crossing(self, level: float) -> float | None:
        """The LR at which the target is at the level, between two of the grid, log-log. None: beyond the grid."""
        side = [(math.log10(row.lr), math.log10(row.value / level)) for row in self.rows]
        for (x0, y0), (x1, y1) in itertools.pairwise(side):
            if y0 * y1 <= 0 and y0 != y1:
                return float(10 ** (x0 + (x1 - x0) * y0 / (y0 - y1)))
        return None


def predict(
    quantity: Quantity, seen: Points, target: float, later: Sequence[tuple[float, float, bool]] = ()
) -> Prediction:
    """From points of smaller sizes; `later` are LR, value and broken of runs of the target, to be shown beside it."""
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
    """Probability of trouble: above the level for what rises, below it for what falls; `n` and `lr` in log10."""
    forecast = model.at(n, lr)
    assert forecast is not None
    above = forecast.above(math.log10(level))
    return above if quantity.rises else 1 - above


def crossing(quantity: Quantity, seen: Points, model: Forecaster, target: float, lr: float, level: float) -> Crossing:
    """Where the probability of trouble first passes 5, 50 and 95 % from the smallest seen size on."""
    grid = np.linspace(seen.sizes[0], math.log10(target) + BEYOND, GRID)
    chance = np.array([beyond(quantity, model, float(n), lr, level) for n in grid])

    def first(p: float) -> float | None:
        if not (chance >= p).any():
            return None
        i = int(np.argmax(chance >= p))
        share = (p - chance[i - 1]) / (chance[i] - chance[i - 1]) if i else 0.0
        return float(10 ** (grid[i - 1] + share * (grid[i] - grid[i - 1]) if i else grid[0]))

    return Crossing(first(0.5), first(0.05), first(0.95))
