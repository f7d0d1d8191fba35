"""Computes the rows of a leaderboard, one for each choice and size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from train.findings.arms import pooled_std
from train.findings.signs import broke_first
from train.results.arms import with_arms
from train.results.floors import common_floor
from train.results.sensitivity import of_runs

if TYPE_CHECKING:
    import pandas as pd

    from train.results.sensitivity import LRSensitivity


FLOOR = "bigram model"
"""Name of the row of the bigram floor."""


def rows(
    window: pd.DataFrame, seeds: pd.DataFrame | None, metrics: Mapping[str, pd.DataFrame] | None = None
) -> pd.DataFrame:
    """Returns one row per size and choice, best first, from the `runs` frames of the window and the confirming sweep.

    - `expected`: mean loss over the window, which a random LR gives. It equals `best` (of the window) + `sensitivity`.
    - `loss`, `std`: mean and standard deviation over the confirming seeds at `best_lr`, once all of them have ended.
    - `next_p`: p-value of Welch's t-test of these losses against those of the choice that is next by `loss`.
    - `range`: factor between the LRs around the best one that stay within DEGRADED of its loss, at most the window's;
      `rank_range` counts from the widest.
    - `critical`, `degraded`, `diverged`: the LRs above the best one at which the loss is interpolated to be degraded,
      at which it first is, and at which training diverges.
    - `broke`: the probe that was first, in the run at `degraded`, to pass all that runs at sound LRs reach.
    - `logit_max`, `entropy`: values of the run at `degraded`, or at the largest LR if no run is degraded.
    - `sink_rate` (mean over blocks), `kurtosis` (maximum over blocks): final values of the run at `best_lr`.

    A choice with missing runs only has `ended` and `runs` and comes last. Runs with a bigram floor add the row FLOOR.
    """
    import pandas as pd

    found = []
    for (size, arm), group in with_arms(window).groupby(["size", "arm"], sort=False):
        row: dict[str, Any] = {"arm": arm, "size": int(size), "runs": len(group), "ended": int(group["ended"].sum())}
        row["N"] = group["N_active"].fillna(group["N"]).max() if "N_active" in group else group["N"].max()
        row["failed"] = int((group["state"] == "failed").sum())
        if group["ended"].all():
            curve = of_runs(group).first
            row |= _of_curve(group, curve) | {"broke": _broke(group, curve, metrics)}
            row |= _confirmed(seeds, size, arm)
        found.append(row)
    table = pd.DataFrame(found)
    table["arm"] = _plain(table["arm"])
    table = pd.concat([table, _floors(window)], ignore_index=True)
    for column in ("expected", "loss", "std", "range"):
        table[column] = table.get(column, math.nan)
    table["rank_range"] = table.groupby("size")["range"].rank(ascending=False, method="min")
    table["next_p"] = pd.concat([_next_p(of) for _, of in table.groupby("size")])
    return table.sort_values(["size", "expected"], ascending=[False, True], kind="stable", ignore_index=True)


def spread(table: pd.DataFrame) -> float | None:
    """Returns the standard deviation over seeds of the loss at the best LR, pooled over choices and sizes."""
    kept = table.dropna(subset=["std"])
    return pooled_std(kept["losses"]) if len(kept) else None


def _floors(window: pd.DataFrame) -> pd.DataFrame:
    """Returns the row FLOOR of each size whose runs share a bigram floor."""
    import pandas as pd

    known = [(size, common_floor(of, "bigram")) for size, of in window.groupby("size")]
    return pd.DataFrame(
        [{"arm": FLOOR, "size": int(size), "runs": 0, "ended": 0, "failed": 0, "expected": floor, "loss": floor}
         for size, floor in known if floor is not None]
    )  # fmt: skip


def _next_p(table: pd.DataFrame) -> pd.Series:
    """Returns the p-value of Welch's t-test of each choice against the next by mean loss, NaN where seeds are few."""
    import pandas as pd
    from scipy.stats import ttest_ind

    found = pd.Series(math.nan, table.index)
    if "losses" in table:
        order = table.dropna(subset=["losses"]).sort_values("loss", kind="stable")["losses"]
        for (at, own), other in zip(order.items(), order.iloc[1:], strict=False):
            if min(len(own), len(other)) > 1:
                found[at] = float(ttest_ind(own, other, equal_var=False).pvalue)
    return found


def _broke(group: pd.DataFrame, curve: LRSensitivity, metrics: Mapping[str, pd.DataFrame] | None) -> str | None:
    """Returns the first sign of trouble at the first degraded LR, None if no LR is or no metrics are known."""
    if metrics is None or curve.first_degraded_lr is None:
        return None
    run_at = group.drop_duplicates("optimizer.lr").set_index("optimizer.lr")["run"]
    sound = [metrics[run_at[lr]] for lr, bad in zip(curve.lrs, curve.degraded, strict=True) if not bad]
    found = broke_first(metrics[run_at[curve.first_degraded_lr]], sound)
    return None if found is None else found[0]


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
        "range": curve.good_range[1] / curve.good_range[0],
        "critical": curve.critical_lr,
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
    one_axis = len(axes) == 1 and arms.str.contains("=").all() and not arms.str.contains(",").any()
    return arms.str.partition("=")[2] if one_axis else arms
