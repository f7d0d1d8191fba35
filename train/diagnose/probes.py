"""Forecasts the largest attention logit and the gradient over epsilon from a recipe's runs, and where they break it.

This applies Figures 9 and 11 of Wortsman et al. 2023 (section 3.3): each against N, at each LR, carried to the target
with an interval, and held against the level above which runs broke.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from train.diagnose.measured import Measured, sensitivity
from train.forecast.measurements import Quantity, gradient, logits, points, read, readable, told_apart
from train.forecast.predict import Prediction, predict

if TYPE_CHECKING:
    import pandas as pd

SAME = 1.01
"""Sizes that differ by less than this factor count as equal."""
WIDEST = 4.0
"""Most decades of an interval that says something, as a median over LRs."""
LEAST_SIZES = 3
"""Two to fit and one to hold out."""
QUANTITIES = (logits(), gradient())


@dataclass(frozen=True)
class ProbeForecast:
    """What probes of the target are forecast to be."""

    found: tuple[Prediction, ...]
    level: float | None
    """Attention logit that tells broken runs from sound ones; None if no level does."""
    runs: pd.DataFrame
    """All runs with their readings, those of the target and beyond too."""
    notes: tuple[str, ...]

    def judged_by(self, quantity: Quantity) -> float:
        """Returns the level of a quantity that decides whether a run is in trouble."""
        return self.level if quantity.rises and self.level is not None else quantity.levels[-1]

    def values(self) -> dict[str, Any]:
        return {"breaking_level": self.level, "forecasts": {p.quantity.name: _values(p) for p in self.found}}


def table(found: Measured) -> pd.DataFrame:
    """Returns a row per run: size, optimizer.lr, seed, broken, and a column for each quantity."""
    import pandas as pd

    rows = []
    for (size, seed), runs in found.curves().items():
        if size not in found.n:
            continue
        for run, bad in zip(runs, sensitivity(runs).degraded, strict=True):
            own = found.metrics[run.name]
            values = {q.name: read(q, own, found.config.steps) for q in QUANTITIES}
            broken = bad or not found.trains(run)
            rows.append({"size": found.n[size], "optimizer.lr": run.lr, "seed": seed, "broken": broken, **values})
    names = ["size", "optimizer.lr", "seed", "broken", *(q.name for q in QUANTITIES)]
    return pd.DataFrame(rows, columns=names)


def probes(found: Measured, target: float) -> ProbeForecast:
    """Forecasts the target from all smaller sizes."""
    runs = table(found)
    small = runs[runs["size"] < target / SAME]
    level, notes, ahead = told_apart(small, "logits"), [], []
    sizes = small["size"].nunique()
    if sizes < LEAST_SIZES:
        notes.append(
            f"attention logits and gradients are forecast from {LEAST_SIZES} sizes on; {sizes} below the target"
        )
    for quantity in QUANTITIES if sizes >= LEAST_SIZES else ():
        own = readable(small, quantity.name)
        if own.empty:
            continue
        if quantity.rises and level is not None:
            quantity = quantity.with_level(level)
        same = readable(runs, quantity.name)
        same = same[(same["size"] / target).between(1 / SAME, SAME)]
        later = list(zip(same["optimizer.lr"], same[quantity.name], same["broken"], strict=True))
        try:
            one = predict(quantity, points(own, quantity.name), target, later)
        except ValueError as fault:
            notes.append(f"no forecast of the {quantity.label}: {fault}")
            continue
        wide = statistics.median(math.log10(row.high / row.low) for row in one.rows)
        if wide > WIDEST:
            notes.append(f"no forecast of the {quantity.label}: its 90 % interval spans {wide:.0f} decades")
        else:
            ahead.append(one)
    if any(p.quantity.rises for p in ahead) and level is None and small["broken"].any():
        notes.append("attention logits don't tell broken runs from sound ones here")
    return ProbeForecast(tuple(ahead), level, runs, tuple(notes))


def _values(prediction: Prediction) -> dict[str, Any]:
    model = prediction.model
    return {
        "metric": prediction.quantity.column, "when": prediction.quantity.when, "family": model.family.name,
        "held_out_errors": model.errors, "sigma": model.sigma, "df": model.df, "held_out": model.held_out,
        "lr_at_level": {level: prediction.lr_crossing(level) for level in prediction.quantity.levels},
        "learning_rates": [asdict(row) for row in prediction.rows],
    }  # fmt: skip
