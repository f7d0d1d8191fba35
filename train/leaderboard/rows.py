"""Computes the rows of a leaderboard, one for each choice and size."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from train.findings.arms import pooled_std
from train.results.arms import with_arms
from train.results.sensitivity import of_runs

if TYPE_CHECKING:
    import pandas as pd

    from train.results.sensitivity import LRSensitivity


def rows(window: pd.DataFrame, seeds: pd.DataFrame | None) -> pd.DataFrame:
    """Returns one row per size and choice, best first, from the `runs` frames of the window and the confirming sweep.

    - `expected`: mean loss over the window, which a random LR gives. It equals `best` (of the window) + `sensitivity`.
    - `loss`, `std`: mean and standard deviation over the confirming seeds at `best_lr`, once all of them have ended.
    - `degraded`, `diverged`: the first LRs above the best one at which the loss is degraded, or training diverges.
    - `logit_max`, `entropy`: values of the run at `degraded`, or at the largest LR if no run is degraded.
    - `sink_rate` (mean over blocks), `kurtosis` (maximum over blocks): final values of the run at `best_lr`.

    A choice with missing runs only has `ended` and `runs` and comes last.
    """
    import pandas as pd

    found = []
    for (size, arm), group in with_arms(window).groupby(["size", "arm"], sort=False):
        row: dict[str, Any] = {"arm": arm, "size": int(size), "runs": len(group), "ended": int(group["ended"].sum())}
        row["N"] = group["N"].max()
        row["failed"] = int((group["state"] == "failed").sum())
        if group["ended"].all():
            row |= _of_curve(group, of_runs(group).first)
            row |= _confirmed(seeds, size, arm)
        found.append(row)
    table = pd.DataFrame(found)
    table["arm"] = _plain(table["arm"])
    for column in ("expected", "loss", "std"):
        table[column] = table.get(column, math.nan)
    return table.sort_values(["size", "expected"], ascending=[False, True], kind="stable", ignore_index=True)


def spread(table: pd.DataFrame) -> float | None:
    """Returns the standard deviation over seeds of the loss at the best LR, pooled over choices and sizes."""
    kept = table.dropna(subset=["std"])
    return pooled_std(kept["losses"]) if len(kept) else None


def _of_curve(group: pd.DataFrame, curve: LRSensitivity) -> dict[str, Any]:
    at = group.set_index("optimizer.lr")
    there = at.loc[curve.first_degraded_lr if curve.first_degraded_lr is not None else curve.lrs[-1]]
    best = at.loc[curve.best_lr]
    return {
        "lrs": curve.lrs,
        "window": curve.losses,
        "best": curve.best_loss,
        "best_lr": curve.best_lr,
        "sensitivity": curve.sensitivity,
        "expected": curve.best_loss + curve.sensitivity,
        "degraded": curve.first_degraded_lr,
        "diverged": curve.first_diverging_lr,
        "logit_max": there["logit_max"],
        "entropy": there["entropy_final"],
        "sink_rate": _over_blocks(best, r"final\.attention/block\d+/sink_rate", np.mean),
        "kurtosis": _over_blocks(best, r"final\.residual/block\d+/kurtosis", np.max),
    }


def _over_blocks(run: pd.Series, pattern: str, reduce: Any) -> float:
    values = [float(v) for name, v in run.items() if re.fullmatch(pattern, str(name)) and v is not None and v == v]
    return float(reduce(values)) if values else math.nan


def _confirmed(seeds: pd.DataFrame | None, size: Any, arm: Any) -> dict[str, Any]:
    if seeds is None:
        return {}
    runs = seeds[(seeds["size"] == size) & (seeds["arm"] == arm)]
    if not runs["ended"].all():
        return {}
    # A diverged run counts as the loss at initialisation, as in LR sensitivity.
    losses = np.minimum(runs["validation/loss_final"].fillna(math.inf), runs["validation/loss_init"]).tolist()
    if not losses:
        return {}
    std = float(np.std(losses, ddof=1)) if len(losses) > 1 else math.nan
    return {"losses": losses, "loss": float(np.mean(losses)), "std": std}


def _plain(arms: pd.Series) -> pd.Series:
    """Strips the axis from the names if they all share one: `attention=softmax` becomes `softmax`."""
    axes = {arm.partition("=")[0] for arm in arms}
    return arms.str.partition("=")[2] if len(axes) == 1 and not arms.str.contains(",").any() else arms
