"""What rises first in runs that break, at which step, and how surely it tells them early from sound runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from train.diagnose.measured import Measured, sensitivity
from train.findings.probes import auc, auc_error, departure, first_step, loss_difference
from train.findings.signs import PROBES

if TYPE_CHECKING:
    import pandas as pd

EARLY = 0.02
"""Share of the run from which the first watched value is read to tell broken from sound runs."""


@dataclass(frozen=True)
class Sign:
    """A probe in the broken and sound runs of a recipe."""

    name: str
    auc: float
    """How surely its first values tell broken from sound runs, over all sizes and LRs; 0.5 is chance."""
    error: float
    broken: int
    sound: int
    passed: int
    """Broken runs in which it passes all that sound runs of the size ever reach."""
    step: float | None
    """Median step of that."""
    lead: float | None
    """Median steps by which it comes before the loss departs from that of the best run, on the same batches."""


@dataclass(frozen=True)
class Rows:
    """The rows of a run, and those of the best run of its size and seed."""

    size: int
    own: pd.DataFrame
    best: pd.DataFrame


def sorted_runs(found: Measured) -> tuple[list[Rows], list[Rows]]:
    """Returns the broken and the sound runs of a recipe, of sizes that train at some LR."""
    broken: list[Rows] = []
    sound: list[Rows] = []
    for (size, _), runs in found.curves().items():
        if len(runs) < 2 or size in found.untrained:
            continue
        one = sensitivity(runs)
        best = found.metrics[runs[one.lrs.index(one.best_lr)].name]
        for run, bad in zip(runs, one.degraded, strict=True):
            (broken if bad else sound).append(Rows(size, found.metrics[run.name], best))
    return broken, sound


def signs(found: Measured) -> tuple[Sign, ...]:
    """Returns the signs that the runs recorded, the earliest first; none without both broken and sound runs."""
    broken, sound = sorted_runs(found)
    return tuple(sorted(_signs(broken, sound, found.config.steps), key=lambda s: (s.step is None, s.step, -s.auc)))


def _signs(broken: Sequence[Rows], sound: Sequence[Rows], steps: int) -> Iterator[Sign]:
    departures = [departure(loss_difference(run.own, run.best)) for run in broken]
    for probe in PROBES:
        bad, good = ([probe.values(run.own) for run in runs] for runs in (broken, sound))
        early = [
            [_early(run, values, steps) for run, values in zip(runs, side, strict=True)]
            for runs, side in ((broken, bad), (sound, good))
        ]
        kept = [[v for v in side if not math.isnan(v)] for side in early]
        area = auc(*kept)
        if area is None:
            continue
        level = {run.size: -math.inf for run in [*broken, *sound]}
        for run, values in zip(sound, good, strict=True):
            level[run.size] = max(level[run.size], float(values.max()))
        first = [first_step(values, values > level[run.size]) for run, values in zip(broken, bad, strict=True)]
        leads = [gone - at for at, gone in zip(first, departures, strict=True) if at is not None and gone is not None]
        passed = [at for at in first if at is not None]
        often = len(passed) * 2 >= len(broken)
        yield Sign(
            probe.name, area, auc_error(area, len(kept[0]), len(kept[1])), len(kept[0]), len(kept[1]), len(passed),
            float(np.median(passed)) if often else None, float(np.median(leads)) if often and leads else None,
        )  # fmt: skip


def _early(run: Rows, values: pd.Series, steps: int) -> float:
    """Returns the first value from EARLY of the run on; infinite where the run has gone to NaN by then, NaN where none
    was recorded."""
    later = values[values.index >= max(1, EARLY * steps)]
    if len(later):
        return float(later.iloc[0])
    return math.inf if len(values) and not np.isfinite(run.own["train/loss"]).all() else math.nan
