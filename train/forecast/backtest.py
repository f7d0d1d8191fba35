"""Backtests forecasts: predicts known sizes from smaller ones and compares with what happened."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from train.forecast.fits import FAMILIES, fit, forecaster
from train.forecast.measurements import Quantity, points, readable, told_apart
from train.forecast.predict import beyond

if TYPE_CHECKING:
    import pandas as pd

COVERED = (0.5, 0.9)
GROUPS = ((1.0, 4.0), (4.0, 15.0), (15.0, math.inf))
"""Half-open ranges of the factor between the forecast size and the largest seen one.

The last starts at 15 because sizes that are nominally 16 times apart are slightly closer once norms are counted.
"""


@dataclass(frozen=True)
class Trial:
    """Holds a forecast of one run from all sizes up to `cut`, and the run's outcome."""

    cut: float
    n: float
    lr: float
    seed: int
    family: str
    forecast: float
    """In log10, like `measured`."""
    measured: float
    last: float
    """Baseline that assumes no change: the value of the largest seen size at the same LR, log10."""
    by_family: Mapping[str, float]
    spans: Mapping[float, tuple[float, float]]
    """Central forecast intervals in log10, by probability."""
    chance: Mapping[float, float]
    """Forecast probability of being beyond a level, by level."""
    breaks: float | None
    """Forecast probability that the run breaks. None if the seen runs gave no level that tells broken from sound."""
    broken: bool
    last_broken: bool

    @property
    def factor(self) -> float:
        return self.n / self.cut

    def covered(self, probability: float) -> bool:
        low, high = self.spans[probability]
        return low <= self.measured <= high


def trials(quantity: Quantity, runs: pd.DataFrame) -> list[Trial]:
    """Forecasts every run from each prefix of at least three smaller sizes."""
    known, found = readable(runs, quantity.name), []
    for cut in sorted(known["size"].unique())[2:-1]:
        largest = known[known["size"] == cut].groupby("optimizer.lr")
        last, last_broken = largest[quantity.name].median(), largest["broken"].median() > 0.5
        later = known[(known["size"] > cut) & known["optimizer.lr"].isin(last.index)]
        seen, at = points(known[known["size"] <= cut], quantity.name), points(later, quantity.name)
        model = forecaster(seen)
        level = told_apart(known[known["size"] <= cut], quantity.name) if quantity.rises else None
        guesses = {family.name: fit(family, seen)(at.n, at.lr) for family in FAMILIES}
        for i, run in enumerate(later.to_dict("records")):
            n, lr, rate = float(at.n[i]), float(at.lr[i]), run["optimizer.lr"]
            forecast = model.at(n, lr)
            if forecast is None:
                continue
            found.append(
                Trial(
                    cut=float(cut), n=float(run["size"]), lr=rate, seed=int(run["seed"]), family=model.family.name,
                    forecast=forecast.mean,
                    measured=float(at.value[i]), last=math.log10(last[rate]),
                    by_family={name: float(values[i]) for name, values in guesses.items()},
                    spans={p: forecast.interval(p) for p in COVERED},
                    chance={level: beyond(quantity, model, n, lr, level) for level in quantity.levels},
                    breaks=beyond(quantity, model, n, lr, level) if level else None,
                    broken=bool(run["broken"]), last_broken=bool(last_broken[rate]),
                )
            )  # fmt: skip
    return found


@dataclass(frozen=True)
class Score:
    """Summarizes the trials of one range of factors. Errors are mean absolute errors in log10."""

    factors: tuple[float, float]
    """Smallest and largest factor among the trials."""
    trials: int
    runs: int
    """Distinct runs that were forecast. Several trials of one run are not independent."""
    error: float
    error_last: float
    error_by_family: Mapping[str, float]
    """Error if one family is always used, over the trials for which it has a curve."""
    coverage: Mapping[float, float]
    hits: Mapping[float, float]
    """Share of trials, by level, in which the side of the level was forecast correctly."""
    hits_last: Mapping[float, float]
    """The same for the baseline of no change."""
    decided: int
    """Trials that forecast whether the run breaks. The rows below are theirs."""
    break_hits: float
    """Share in which that was right."""
    break_hits_last: float
    brier: float
    """Mean squared error of the probability that a run breaks. The baseline scores 1 - break_hits_last."""
    broken: int


def score(quantity: Quantity, chosen: Sequence[Trial]) -> Score:
    """Returns the score of these trials together."""

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values)) if len(values) else math.nan

    def right(level: float, trial: Trial, beyond_level: bool) -> bool:
        return beyond_level == ((trial.measured > math.log10(level)) == quantity.rises)

    def error(family: str) -> float:
        errors = [abs(t.by_family[family] - t.measured) for t in chosen]
        return mean([e for e in errors if math.isfinite(e)])

    decided = [(t, t.breaks) for t in chosen if t.breaks is not None]
    levels = {level: math.log10(level) for level in quantity.levels}
    return Score(
        factors=(min(t.factor for t in chosen), max(t.factor for t in chosen)),
        trials=len(chosen),
        runs=len({(t.n, t.lr, t.seed) for t in chosen}),
        error=mean([abs(t.forecast - t.measured) for t in chosen]),
        error_last=mean([abs(t.last - t.measured) for t in chosen]),
        error_by_family={family.name: error(family.name) for family in FAMILIES},
        coverage={p: mean([t.covered(p) for t in chosen]) for p in COVERED},
        hits={x: mean([right(x, t, t.chance[x] > 0.5) for t in chosen]) for x in levels},
        hits_last={
            x: mean([right(x, t, (t.last > log) == quantity.rises) for t in chosen]) for x, log in levels.items()
        },
        decided=len(decided),
        break_hits=mean([(breaks > 0.5) == t.broken for t, breaks in decided]),
        break_hits_last=mean([t.last_broken == t.broken for t, _ in decided]),
        brier=mean([(breaks - t.broken) ** 2 for t, breaks in decided]),
        broken=sum(t.broken for t, _ in decided),
    )


def scores(quantity: Quantity, found: Sequence[Trial]) -> list[Score]:
    """Returns a score for each range of factors that has trials, and then one for all trials."""
    groups = [[t for t in found if low <= t.factor < high] for low, high in GROUPS]
    return [score(quantity, group) for group in [*groups, list(found)] if group]
