"""What comes first in a run that breaks: a probe that passes its mark, or the loss that departs from a good run's.

A run that breaks is one that degrades, held against the run of the best LR at its size and seed. Both see the same
batches, so the difference of their training losses is free of what batches differ in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from train.findings.arms import Arms
from train.findings.probes import at_end, departure, first_step, loss_difference, series
from train.findings.quantities import Row, measure, records

if TYPE_CHECKING:
    import pandas as pd

ENTROPY, LOGIT = "attention/entropy", "attention/block0/logit_max"
COLLAPSED = 0.1
"""Of its value at the first step, below which the mean entropy over blocks, heads and queries has collapsed."""


def lead(mark: int | None, row: Row, sweep: Arms) -> float:
    """Returns the share of the run by which the mark comes before the loss departs; below zero for after it, or never.
    NaN for a run that doesn't degrade. A loss that departs nowhere in training does so after its end."""
    if not row["degraded"] or "reference" not in row:
        return math.nan
    own = sweep.metrics[row["run"]]
    gone, steps = departure(loss_difference(own, sweep.metrics[row["reference"]])), int(row["steps"])
    return -1.0 if mark is None else ((steps if gone is None else gone) - mark) / steps


def collapse(rows: pd.DataFrame) -> int | None:
    """Returns the first watched step at which the mean entropy is below COLLAPSED of its first value."""
    entropy = series(rows, ENTROPY)
    return first_step(entropy, entropy < COLLAPSED * entropy.iloc[0]) if len(entropy) else None


@measure("entropy_lead", "share of the run by which entropy collapses before the loss departs")
def entropy_lead(row: Row, sweep: Arms) -> float:
    return lead(collapse(sweep.metrics[row["run"]]), row, sweep)


@measure("entropy_step", "entropy at the first LR that degrades over that at the LR before", log=True)
def entropy_step(row: Row, sweep: Arms) -> float:
    """Returns the log of the step at which entropy collapses, of the run at the first LR that degrades; NaN of every
    other run."""
    same = [r for r in records(sweep, row["arm"]) if r["size"] == row["size"] and r["seed"] == row["seed"]]
    same.sort(key=lambda r: r["optimizer.lr"])
    first = next((i for i, r in enumerate(same) if r["degraded"]), 0)
    if not first or same[first]["run"] != row["run"]:
        return math.nan
    before, after = (at_end(sweep.metrics[r["run"]], ENTROPY) for r in (same[first - 1], same[first]))
    return math.log(after / before) if before > 0 and after > 0 else math.nan


@measure("logit_lead", "share of the run by which logits pass all sound runs' before the loss departs")
def logit_lead(row: Row, sweep: Arms) -> float:
    """Returns the lead of the first step at which block 0's logits are above what any sound run of the arm ever has: a
    threshold without false alarms."""
    if not row["degraded"]:
        return math.nan
    sound = [r["run"] for r in records(sweep, row["arm"]) if not r["degraded"]]
    level = max((float(series(sweep.metrics[run], LOGIT).max()) for run in sound), default=math.inf)
    found = series(sweep.metrics[row["run"]], LOGIT)
    return lead(first_step(found, found > level), row, sweep)


@measure("early_rise", "largest rise of the loss in the first tenth (nats)", late=False)
def early_rise(row: Row, sweep: Arms) -> float:
    """Returns the nats by which the training loss, a running median over five batches, rises most above what it was."""
    rows = sweep.metrics[row["run"]]
    trained = rows[rows["step"] >= 0]
    early = trained[trained["step"] < 0.1 * int(row["steps"])]
    loss = early["train/loss"].rolling(5, center=True, min_periods=1).median()
    return float(np.max(loss - loss.cummin())) if len(loss) else math.nan
