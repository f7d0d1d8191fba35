"""The numbers that claims speak of, by name: of a curve of loss against LR, of a run, or of a metric of a run.

In a claim a quantity is a name (`lr_sensitivity`, `loss`, `early_rise`) or a metric with what is taken of it:
`{metric: attention/block0/logit_max, at: max}`. A metric with a `*` stands for several columns, which `pool` joins.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict

from conf.axis import import_all, near
from train.findings.arms import Arms, on_one_grid
from train.findings.probes import at_end, series, window
from train.results.sensitivity import LRSensitivity, OverSeeds, coupled_lr_sensitivity
from train.results.table import ACCURACY, SOLVED
from train.sweeps.early_stop import FROM

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]
"""A run's row in the frame of its sweep, with what `records` adds."""
RunNumber = Callable[[Row, Arms], float]


@dataclass(frozen=True)
class Quantity:
    """A number of a curve (one of a seed) or of a run; its logarithm where `log`."""

    label: str
    log: bool
    of_curve: Callable[[LRSensitivity], float] | None = None
    of_run: RunNumber | None = None
    beyond: Callable[[LRSensitivity], tuple[float, int]] | None = None
    """Of a curve whose number lies beyond the LR grid, its bound, and the side: 1 above the grid, -1 below. One that
    trains at no LR has no number and no bound."""
    after: str | None = None
    """The measurement of final weights that it needs, a module of train.measure with `measured`."""
    late: bool = False
    """Whether more than the final loss is read of the part of a run in which it may be stopped."""


def _log(value: float | None) -> float:
    return math.nan if value is None or not value > 0 else math.log(value)


def optimal_lr(one: LRSensitivity) -> float:
    """Returns the log of the LR of least loss: the lowest point of the parabola through the best point of the grid and
    its neighbours, loss against log LR. NaN at an edge of the grid, and where the losses don't bend."""
    at = int(np.argmin(one.losses))
    x, y = np.log(one.lrs), np.asarray(one.losses)
    if not 0 < at < len(x) - 1 or np.ptp(y[at - 1 : at + 2]) == 0:
        return math.nan
    a, b, _ = np.polyfit(x[at - 1 : at + 2] - x[at], y[at - 1 : at + 2], 2)
    return float(x[at] - b / (2 * a))


def _optimum_beyond(one: LRSensitivity) -> tuple[float, int]:
    """Returns a bound and its side where the best LR is at an edge: the optimum lies beyond the middle of the last two
    LRs; NaN elsewhere."""
    at, x = int(np.argmin(one.losses)), np.log(one.lrs)
    if len(x) < 2 or 0 < at < len(x) - 1:
        return math.nan, 0
    return (float(x[:2].mean()), -1) if at == 0 else (float(x[-2:].mean()), 1)


CURVE: Mapping[str, Quantity] = {
    "lr_sensitivity": Quantity("LR sensitivity (nats)", False, lambda one: one.sensitivity),
    "upper_sensitivity": Quantity("LR sensitivity from the best LR up (nats)", False, lambda one: one.upper),
    "coupled_lr_sensitivity": Quantity(
        "LR sensitivity, better of two windows (nats)", False,
        lambda one: coupled_lr_sensitivity(one.lrs, one.losses, one.loss_init),
    ),
    "best_loss": Quantity("best loss (nats)", False, lambda one: one.best_loss),
    "mean_loss": Quantity("mean loss over the LRs (nats)", False, lambda one: float(np.mean(one.losses))),
    "critical_lr": Quantity("critical LR", True, lambda one: _log(one.critical_lr),
                            beyond=lambda one: (math.log(max(one.lrs)), 1)),
    "optimal_lr": Quantity("optimal LR", True, optimal_lr, beyond=_optimum_beyond),
}  # fmt: skip


def _capped(row: Row, _: Arms) -> float:
    final, init = row["validation/loss_final"], row["validation/loss_init"]
    return float(final) if final is not None and final < init else float(init)


def _logit(row: Row, _: Arms) -> float:
    """Returns the log of the largest of the whole run; infinite for a run that went to NaN before it was watched."""
    value = row.get("logit_max", math.nan)
    return math.inf if math.isnan(value) and row["state"] == "diverged" else _log(value)


def _solved(row: Row, _: Arms) -> float:
    """Returns 1 for a run that solves a task with answers, 0 for one that doesn't; NaN for other data."""
    right = row.get(ACCURACY, math.nan)
    return math.nan if right is None or math.isnan(right) else float(right >= SOLVED)


RUN: dict[str, Quantity] = {
    "loss": Quantity("final loss (nats)", False, of_run=_capped),
    "above_best": Quantity("loss above the best LR's (nats)", False,
                           of_run=lambda row, sweep: _capped(row, sweep) - row.get("best_loss", math.nan)),
    "logit_max": Quantity("largest attention logit of a run", True, of_run=_logit, late=True),
    "solved": Quantity(f"share of runs that solve the task (accuracy >= {SOLVED:g})", False, of_run=_solved, late=True),
    "learning_rate": Quantity("learning rate", True, of_run=lambda row, _: _log(row["optimizer.lr"])),
}  # fmt: skip
"""Measures of train/findings/measures register theirs here."""


def measure(
    name: str, label: str, log: bool = False, late: bool = True, after: str | None = None
) -> Callable[[RunNumber], RunNumber]:
    """Registers a function of a run under a name that claims can use; for `late` see Quantity.

    With `after`, rows of runs have what this measurement found at the final weights.
    """

    def register(function: RunNumber) -> RunNumber:
        if name in RUN:
            raise ValueError(f"quantity {name} is registered twice")
        RUN[name] = Quantity(label, log, of_run=function, late=late, after=after)
        return function

    return register


def _known(name: str) -> str:
    import_all("train.findings.measures")
    if name not in CURVE and name not in RUN:
        raise ValueError(f"quantity {name} is not known: {near(name, [*CURVE, *RUN])}")
    return name


At = Literal["end", "max", "last"] | float | tuple[float, float]
"""Mean over the last watched steps, largest of the run, last row; mean over the twentieth of the run up to a share of
it, or between two shares."""


class Metric(BaseModel):
    """A metric of a run and what is taken of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    at: At = "end"
    pool: Literal["mean", "max", "growth"] = "mean"
    """Of a metric with a `*`, over the columns that it stands for; growth: the least log ratio of one to the next."""
    over: str | None = None
    """Divided by this metric."""
    minus: str | None = None
    """Less this metric."""
    since: float | None = None
    """Divided by its own value at this share of the run."""
    log: bool = True
    sign: Literal[1, -1] = 1
    """-1 where low values are what counts."""

    def number(self, row: Row, sweep: Arms) -> float:
        rows = sweep.metrics[row["run"]]
        found = self._pooled(rows, self.metric, self.at, row)
        if self.minus:
            return self.sign * (found - self._pooled(rows, self.minus, self.at, row))
        if self.pool == "growth":
            return found
        value = _log(found) if self.log and math.isfinite(found) else found
        for other in (self.over and self._pooled(rows, self.over, self.at, row),
                      self.since is not None and self._pooled(rows, self.metric, self.since, row)):  # fmt: skip
            if other:
                value = value - _log(other) if self.log else value / other
        return self.sign * value if math.isfinite(value) else value

    def _pooled(self, rows: pd.DataFrame, name: str, at: At, row: Row) -> float:
        columns = [c for c in rows if fnmatch.fnmatchcase(c, name)] if "*" in name else [name]
        values = np.array([_taken(rows, column, at, row) for column in columns], dtype=float)
        if not len(values) or np.isnan(values).all():
            return math.nan
        if self.pool == "growth":
            return float(np.diff(np.log(values)).min()) if len(values) > 1 else math.nan
        return float(np.nanmax(values) if self.pool == "max" else np.nanmean(values))


def _taken(rows: pd.DataFrame, column: str, at: At, row: Row) -> float:
    """Returns the value of one column, over the finite part of a run that has gone to NaN. A window's is the mean
    magnitude, infinite where the run has gone by then."""
    if column not in rows:
        return math.nan
    if at == "end":
        return at_end(rows, column)
    if at == "max":
        return float(series(rows, column).max())
    if at == "last":
        return float(rows[column].dropna().iloc[-1]) if rows[column].notna().any() else math.nan
    low, high = at if isinstance(at, tuple) else (max(0.0, float(at) - 0.05), float(at))
    return window(rows, column, low, high, int(row["steps"]))


Named = Annotated[str, AfterValidator(_known)]
Of = Named | Metric
"""A quantity in a claim."""


def quantity(of: Of) -> Quantity:
    if isinstance(of, Metric):
        log = of.log and not of.minus and of.pool != "growth"
        label = of.metric + (f" less {of.minus}" if of.minus else f" / {of.over}" if of.over else "")
        return Quantity(label, log or of.pool == "growth", of_run=of.number, late=_is_late(of.at) or _is_late(of.since))
    return CURVE[of] if of in CURVE else RUN[of]


def _is_late(at: At | None) -> bool:
    return at is not None and (isinstance(at, str) or (at[1] if isinstance(at, tuple) else at) > FROM)


Select = Literal["all", "sound", "broken"]


def values(
    sweep: Arms, arm: str, of: Of, runs: Select = "all", lr: float | str | None = None, grid: str | None = None
) -> pd.DataFrame:
    """Returns a quantity of an arm by `size`, `lr` and `seed` (LR 0 for one of a curve), with `edge`: 1 where the value
    is a bound as the number lies above the LR grid, -1 below it, else 0.

    `lr` keeps one learning rate, `highest` or `lowest` of each size. `grid` is the arm whose LRs a curve is cut to.
    """
    import pandas as pd

    found, columns = quantity(of), ["size", "lr", "seed", "value", "edge"]
    if found.of_curve:
        rows = list(_of_curves(sweep, arm, found, grid))
    else:
        rows = [
            (int(row["size"]), float(row["optimizer.lr"]), int(row["seed"]), found.of_run(row, sweep), 0)
            for row in records(sweep, arm)
            if found.of_run and (runs == "all" or row["broken"] == (runs == "broken"))
        ]
    table = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[:4], float) | {"edge": int})
    if lr is not None and not found.of_curve:
        ends = table.groupby("size")["lr"].transform("min" if lr == "lowest" else "max")
        table = table[np.isclose(table["lr"], ends if isinstance(lr, str) else lr)]
    return table[table["value"].notna()]


def _of_curves(sweep: Arms, arm: str, found: Quantity, grid: str | None) -> list[tuple[int, float, int, float, int]]:
    rows = []
    for n in sweep.sizes(arm):
        curve: OverSeeds | None = sweep.curves.get((n, arm))
        if curve is None or found.of_curve is None:
            continue
        if grid and (n, grid) in sweep.curves:
            curve = on_one_grid([curve, sweep.curves[n, grid]])[0]
        for seed, one in curve.by_seed.items():
            value, edge = found.of_curve(one), 0
            if found.beyond and not one.trains:
                value = math.nan
            elif found.beyond and math.isnan(value):
                value, edge = found.beyond(one)
            rows.append((n, 0.0, seed, value, edge))
    return rows


def records(sweep: Arms, arm: str) -> list[dict[str, Any]]:
    """Returns the ended runs of an arm with `broken` (degraded or diverged) and, from complete curves, `best_lr`,
    `best_loss` and `reference`: the run of the best LR at their size and seed, which saw the same batches."""
    rows = sweep.ended(arm).to_dict("records")
    names = {(r["size"], r["seed"], r["optimizer.lr"]): r["run"] for r in rows}
    for row in rows:
        row["broken"] = row["degraded"] = row["state"] == "diverged"
        curve = sweep.curves.get((int(row["size"]), arm))
        if curve is not None:
            one = curve.by_seed[int(row["seed"])]
            row["degraded"] = one.degraded[one.lrs.index(row["optimizer.lr"])]
            row["broken"] = row["degraded"] or row["state"] != "finished"
            row |= {"best_lr": one.best_lr, "best_loss": one.best_loss,
                    "reference": names[row["size"], row["seed"], one.best_lr]}  # fmt: skip
    return [{str(k): v for k, v in row.items()} for row in rows]
