"""What findings on probes share: values at the end of runs over sizes and LRs, runs that degrade, and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from train.findings.arms import Arms
from train.results.sensitivity import DEGRADED

if TYPE_CHECKING:
    import pandas as pd

END = 5
"""Watched steps that make up the end of a run: with the paper's length and watch_every its final 500 steps."""
WINDOW = 0.05
"""Share of a run over which a difference of training losses is smoothed, by a running median."""
LASTING = 0.1
"""Share of a run for which a loss must stay away to count as departed: a spike is no departure."""


def series(rows: pd.DataFrame, column: str) -> pd.Series:
    """A probe by step, where it was watched and is finite; empty when the run has none."""
    import pandas as pd

    if column not in rows:
        return pd.Series(dtype=float)
    values = rows[rows["step"] >= 0].set_index("step")[column].astype(float)
    return values[np.isfinite(values)]


def at_end(rows: pd.DataFrame, column: str) -> float:
    """The probe's mean over the last END watched steps; NaN when the run has none."""
    return float(series(rows, column).tail(END).mean())


def end_grid(sweep: Arms, arm: str, metrics: Mapping[str, pd.DataFrame], column: str) -> pd.DataFrame:
    """The probe at the end of an arm's ended runs, a row a size, a column an LR, ascending; geometric mean over seeds.

    A run that went to NaN has no end, and no value.
    """
    runs = sweep.ended(arm)
    runs = runs[runs["state"] != "diverged"]
    logs = np.log([at_end(metrics[run], column) for run in runs["run"]])
    table = runs.assign(value=logs).pivot_table(index="size", columns="optimizer.lr", values="value")
    return np.exp(table)


def changes(values: Sequence[float]) -> dict[str, float]:
    """Of values in their order: the factor from first to last, and the largest up and down between neighbours."""
    known = np.asarray([v for v in values if np.isfinite(v)], dtype=float)
    steps = known[1:] / known[:-1]
    return {
        "factor": float(known[-1] / known[0]),
        "largest_rise": float(steps.max(initial=1.0)),
        "largest_fall": float((1 / steps).max(initial=1.0)),
    }


def exponents(grid: pd.DataFrame) -> dict[str, float]:
    """Of the fit log value = a + b log N + c log LR over the whole grid: b as `size`, c as `lr`."""
    places = [(n, lr, v) for n, row in grid.iterrows() for lr, v in row.items() if np.isfinite(v)]
    if len({n for n, *_ in places}) < 2 or len({lr for _, lr, _ in places}) < 2:
        return {"size": float("nan"), "lr": float("nan")}
    logs = np.log(np.asarray(places, dtype=float))
    design = np.column_stack([np.ones(len(logs)), logs[:, :2]])
    _, size, lr = np.linalg.lstsq(design, logs[:, 2], rcond=None)[0]
    return {"size": float(size), "lr": float(lr)}


def labelled(sweep: Arms, arm: str) -> pd.DataFrame:
    """The runs of an arm's complete curves, with `degraded`, and `reference`: the run of the best LR at their size and
    seed, which saw the same batches."""
    found = []
    for row in sweep.ended(arm).to_dict("records"):
        curve = sweep.curves.get((int(row["size"]), arm))
        if curve is None:
            continue
        one = curve.by_seed[int(row["seed"])]
        found.append(row | {"degraded": one.degraded[one.lrs.index(row["optimizer.lr"])], "best_lr": one.best_lr})
    return _with_reference(found)


def _with_reference(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    best = {(r["size"], r["seed"]): r["run"] for r in rows if r["optimizer.lr"] == r["best_lr"]}
    columns = None if rows else ["run", "size", "seed", "optimizer.lr", "steps", "degraded", "reference"]
    return pd.DataFrame([r | {"reference": best[r["size"], r["seed"]]} for r in rows], columns=columns)


def loss_difference(rows: pd.DataFrame, reference: pd.DataFrame) -> pd.Series:
    """Training loss over that of the reference on the same batches, by step, smoothed by a running median.

    A step whose loss is not finite, or that the run didn't reach, is infinitely far.
    """
    own, other = (
        frame[frame["step"] >= 0].set_index("step")["train/loss"].astype(float) for frame in (rows, reference)
    )
    gap = (own.reindex(other.index) - other).fillna(np.inf)
    return gap.rolling(max(1, round(WINDOW * len(gap))), center=True, min_periods=1).median()


def departure(gap: pd.Series) -> int | None:
    """The first step from which the smoothed difference stays above DEGRADED for LASTING of the run; None for never."""
    length = max(1, round(LASTING * len(gap)))
    above = (gap > DEGRADED).to_numpy()
    lasting = np.convolve(above, np.ones(length))[length - 1 : len(above)] >= length
    return int(gap.index[int(np.argmax(lasting))]) if lasting.any() else None


def first_step(values: pd.Series, where: pd.Series) -> int | None:
    """The first step of `values` at which `where` holds."""
    found = values.index[where.to_numpy(dtype=bool)]
    return int(found[0]) if len(found) else None


def auc(bad: Sequence[float], good: Sequence[float]) -> float | None:
    """The chance that a value of `bad` is above one of `good`, ties half: the area under the ROC curve."""
    from scipy.stats import mannwhitneyu

    if not len(bad) or not len(good):
        return None
    return float(mannwhitneyu(bad, good).statistic) / (len(bad) * len(good))
