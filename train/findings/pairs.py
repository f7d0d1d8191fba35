"""Two arms run by run: what the second changes in runs of the same size, LR and seed, which saw the same batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.findings.arm_figures import arms_and_sizes_legend, by_arm_and_size
from train.findings.arms import Arms
from train.findings.null_claims import short
from train.findings.probes import at_end, labelled
from train.findings.trends import Value, all_of, best_loss, mean
from train.results.style import line_over_seeds, lr_axis, panels, styled
from train.results.verdict import Check

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Probe = Callable[["pd.DataFrame"], float]
"""A number of a run, from its metrics rows; NaN where it has none."""
Metrics = Mapping[str, "pd.DataFrame"]

LEAST_PAIRS = 4
"""Pairs of runs from which the spread of their differences is taken for known."""
LOWER = 1.25
"""Factor by which a probe must be lower to count as reduced: more than a run's probe moves between two watch steps,
less than any of the effects that papers call one. Set before any run was seen."""


def largest(probe: str) -> Probe:
    """At the end of a run, of the block that has the most: `residual/kurtosis` is over residual/block*/kurtosis."""
    return lambda rows: max(_of_blocks(rows, probe), default=math.nan)


def average(probe: str) -> Probe:
    """At the end of a run, mean over its blocks."""
    return lambda rows: float(np.mean(_of_blocks(rows, probe) or [math.nan]))


def _of_blocks(rows: pd.DataFrame, probe: str) -> list[float]:
    group, _, what = probe.partition("/")
    columns = [c for c in rows if c.startswith(f"{group}/block") and c.count("/") == 2 and c.endswith(f"/{what}")]
    return [at_end(rows, c) for c in columns]


@dataclass(frozen=True)
class Pairs:
    base: str
    arm: str
    values: Sequence[Mapping[str, float]]
    """N, lr, seed, and the numbers of both as `base` and `arm`."""
    without: int
    """Pairs that lack the number."""
    gaps: str

    def change(self, log: bool = True, share: float = 1.0) -> Value | None:
        """Mean difference of the arm from the base, or from this share of it; of logs by default. None for less than
        LEAST_PAIRS pairs. Pairs of one seed differ in size and LR: the spread over these is in its error."""
        of = np.log if log else np.asarray
        with np.errstate(divide="ignore", invalid="ignore"):
            return over(of([p["arm"] for p in self.values]) - of([share * p["base"] for p in self.values]))

    def middle(self, of: str) -> float:
        return float(np.median([p[of] for p in self.values])) if self.values else math.nan

    def numbers(self) -> dict[str, Any]:
        return {"pairs": list(self.values), "without": self.without}

    def __str__(self) -> str:
        lacking = f", {self.without} without this probe" if self.without else ""
        return (
            f"{self.gaps}medians {short(self.middle('base'))} -> {short(self.middle('arm'))}, "
            f"{len(self.values)} pairs{lacking}"
        )


def over(values: Sequence[float] | np.ndarray) -> Value | None:
    """Mean of numbers of runs; None for less than LEAST_PAIRS or where one is not finite.

    The error is half of what Student's t makes of their spread, so that two errors are the 95 % interval of few too.
    """
    from scipy.stats import t

    found = np.asarray(values, dtype=float)
    if len(found) < LEAST_PAIRS or not np.isfinite(found).all():
        return None
    error = float(np.std(found, ddof=1)) / math.sqrt(len(found))
    return Value(float(np.mean(found)), error * float(t.ppf(0.975, len(found) - 1)) / 2)


def pairs(sweep: Arms, metrics: Metrics, base: str, arm: str, of: Probe | str, healthy: bool = True) -> Pairs:
    """Of the runs that both arms have; `healthy`: of those where neither is degraded or diverged. `of` is a probe, or a
    column of the runs."""
    both = [labelled(sweep, name).set_index(["size", "optimizer.lr", "seed"]) for name in (base, arm)]
    found, without = [], 0
    for key in sorted(set(both[0].index) & set(both[1].index)):
        rows = [frame.loc[key] for frame in both]
        if healthy and any(row["degraded"] or row["state"] != "finished" for row in rows):
            continue
        a, b = (float(row[of]) if isinstance(of, str) else of(metrics[row["run"]]) for row in rows)
        if math.isnan(a) or math.isnan(b):
            without += 1
        else:
            found.append({"N": int(key[0]), "lr": float(key[1]), "seed": int(key[2]), "base": a, "arm": b})
    return Pairs(base, arm, found, without, sweep.gaps(base, arm))


def lowered(claim: str, found: Pairs, least: float = 0.0) -> Check:
    """Passes when the arm's number is below that of the base by LOWER, in the geometric mean over pairs, with two
    errors to spare; fails when it surely is not. Open with runs missing, with less than LEAST_PAIRS pairs, and where
    the base's median is not above `least`: there is nothing to lower."""
    change, nothing = found.change(), found.middle("base") <= least
    needed = f"; nothing to lower, {short(least)} and less is none" if nothing else ""
    return Check(
        claim=claim,
        passed=change.below(-math.log(LOWER)) if change and not found.gaps and not nothing else None,
        numbers={
            "log_change": change and change.numbers(), "needed_factor": LOWER, "least_base": least, **found.numbers(),
        },
        text=f"{found}" + (f": {change.factor()}" if change else "") + needed,
    )  # fmt: skip


def moved(claim: str, found: Pairs, by: float) -> Check:
    """The same of a difference, not a factor: passes when it is above `by`, or for a negative one below, with two
    errors to spare."""
    change = found.change(log=False)
    passed = None
    if change and not found.gaps:
        passed = change.above(by) if by >= 0 else change.below(by)
    return Check(
        claim=claim,
        passed=passed,
        numbers={"change": change and change.numbers(), "needed": by, **found.numbers()},
        text=f"{found}" + (f": {change}" if change else ""),
    )


def not_above(claim: str, found: Pairs, limit: float) -> Check:
    """Passes when the arm's number is not above the base's by `limit`, in the mean over pairs, with two errors to
    spare; fails when it surely is."""
    change = found.change(log=False)
    return Check(
        claim=claim,
        passed=change.below(limit) if change and not found.gaps else None,
        numbers={"change": change and change.numbers(), "limit": limit, **found.numbers()},
        text=f"{found}" + (f": {change}" if change else ""),
    )


def best_losses(sweep: Arms, base: str, arm: str) -> dict[int, Value]:
    """Best loss of the arm less that of the base, by N."""
    return {n: mean(sweep, b, best_loss) - mean(sweep, a, best_loss) for n, (a, b) in sweep.together(base, arm)}


def no_worse(claim: str, sweep: Arms, base: str, arm: str, tolerance: float) -> Check:
    """Passes when at every size the best loss of the arm is not above that of the base by `tolerance` nats, with two
    standard errors to spare; fails when it surely is at some size."""
    by_n, gaps = best_losses(sweep, base, arm), sweep.gaps(base, arm)
    parts = [f"N={size_label(n)} {value}" for n, value in by_n.items()]
    return Check(
        claim=claim,
        passed=None if gaps else all_of(value.below(tolerance) for value in by_n.values()),
        numbers={"change": {n: v.numbers() for n, v in by_n.items()}, "tolerance": tolerance},
        text=f"{gaps}change of the best loss at {'; '.join(parts) or '-'} nats",
    )


@styled
def probes_against_lr(sweep: Arms, metrics: Metrics, probes: Mapping[str, Probe], linear: Sequence[str] = ()) -> Figure:
    """Final loss and probes, by their labels, against LR: a colour for each arm, a line style for each size."""
    figure, axes = panels(1 + len(probes))
    for runs, colour, style in by_arm_and_size(sweep):
        if not len(runs):
            continue
        line_over_seeds(axes[0], runs, "validation/loss", colour, style)
        for panel, of in zip(axes[1:], probes.values(), strict=True):
            shown = runs.assign(value=[of(metrics[run]) for run in runs["run"]]).dropna(subset=["value"])
            if len(shown):
                line_over_seeds(panel, shown, "value", colour, style)
    for panel, label in zip(axes, ["final validation loss (nats)", *probes], strict=True):
        lr_axis(panel)
        panel.set_ylabel(label)
        if label in probes and label not in linear and panel.has_data():
            panel.set_yscale("log")
    arms_and_sizes_legend(figure, sweep, columns=max(2, int(figure.get_figwidth() / 1.5)))
    return figure
