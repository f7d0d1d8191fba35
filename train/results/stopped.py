"""Results of runs that were stopped early: what they measured until then, and an estimate of their final loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from train.results.arms import settings
from train.results.later import flat
from train.runfolder.folder import STOPPED, RunFolder
from train.runfolder.measured import measured
from train.sweeps.early_stop import estimate, stopped_above

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]


def with_estimates(rows: Sequence[Row], folders: Sequence[RunFolder]) -> list[Row]:
    """Returns flat rows of runs in which those that were stopped as clearly broken have a result.

    Runs that differ in the learning rate alone give it. Without one that has ended, a row stays as it is.
    """
    stopped = [row["state"] == STOPPED for row in rows]
    if not any(stopped):
        return list(rows)
    curves, ended = same_but_for_lr(rows), dict[str, list[Row]]()
    for row, curve in zip(rows, curves, strict=True):
        if row["ended"]:
            ended.setdefault(curve, []).append(row)
    found = []
    for row, folder, early, curve in zip(rows, folders, stopped, curves, strict=True):
        of_curve = ended.get(curve, []) if early else []
        lower = [other for other in of_curve if other["optimizer.lr"] < row["optimizer.lr"]]
        found.append(row | _result(folder, lower) if lower else row)
    return found


def same_but_for_lr(rows: Sequence[Row]) -> list[str]:
    """Returns text for each run that is the same for those whose settings differ in the learning rate alone."""
    kept = settings() | {"seed"}
    named = [{k: v for k, v in row.items() if k.partition(".")[0] in kept and k != "optimizer.lr"} for row in rows]
    return [json.dumps(values, sort_keys=True) for values in named]


OF_SIZE = ("N", "N_active", "parameters", "tokens", "bytes_per_token")
"""Results that don't depend on the learning rate, with the floors."""


def _result(folder: RunFolder, lower: Sequence[Row]) -> Row:
    """Returns the results of a stopped run, {} if `watch.stop` has ended it."""
    status, rows = folder.status(), folder.metrics()
    final = estimate(status, [row.get("validation/loss_final") for row in lower])
    if final is None:
        return {}
    init = rows[0]["validation/loss"]
    loss = min(final, init)
    same = {k: v for k, v in lower[0].items() if k in OF_SIZE or k.startswith("floor/")}
    if bytes_per_token := lower[0].get("bytes_per_token"):
        from train.run.derived import bits_per_byte  # loads torch

        same |= bits_per_byte(loss, bytes_per_token)
    if right := [row["validation/accuracy"] for row in rows if "validation/accuracy" in row]:
        same["validation/accuracy"] = right[-1]
    return same | {
        "ended": True,
        "stopped_above": stopped_above(status),
        "validation/loss_init": init,
        "validation/loss_final": final,
        "validation/loss": loss,
        "seconds": status.get("seconds"),
        **flat(measured(rows, init)),
    }


def stopped_text(runs: pd.DataFrame) -> str | None:
    """Returns one line on the runs whose final loss is an estimate, or None if there are none."""
    count = int(is_estimate(runs).sum())
    text = "were stopped as clearly broken: their final losses are estimates, other numbers are of the part that ran"
    return f"{count} of {len(runs)} runs {text}" if count else None


def is_estimate(runs: pd.DataFrame) -> pd.Series:
    """Returns for each run whether its final loss is an estimate."""
    return runs["ended"].astype(bool) & (runs["state"] == STOPPED)
