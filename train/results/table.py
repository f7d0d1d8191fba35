"""Tabulates a sweep with one row per size and arm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from train.cli.format import number, size_label
from train.results.arms import unplaced, with_arms
from train.results.floors import NAMES, common_floor
from train.results.sensitivity import OverSeeds, of_runs

if TYPE_CHECKING:
    import pandas as pd


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns one row per size and arm: LR sensitivity, best loss and LR, first degraded LR and largest logit there.

    Beside them are bits per byte at the best LR, for text; accuracy and share of solved runs there, for data with
    answers; and the floors of the loss where all runs share them.
    A curve with missing runs gets no LR sensitivity, since values over different LR grids are not comparable. A missing
    run of unknown config counts for each size of its arm.
    """
    import pandas as pd

    rows, runs = [], with_arms(runs)
    for (n, arm), group in runs.groupby(["size", "arm"], sort=True):
        ended, missing = group[group["ended"]], unplaced(runs, arm)
        row = {
            "N": int(n),
            "arm": arm,
            "runs": len(group) + len(missing),
            "ended": len(ended),
            "diverged": int((ended["state"] == "diverged").sum()),
        }
        if "N" in group and (own := group["N"].median()) > SAME_SIZE * n:
            row["own_N"] = int(own)
        curve = None if missing else _curve(group)
        row |= {f"floor/{name}": floor for name in NAMES if (floor := common_floor(group, name)) is not None}
        if curve is not None:
            by_lr = ended.groupby("optimizer.lr")
            losses, first = by_lr["validation/loss"].median(), curve.median("first_degraded_lr")
            row |= {
                "seeds": len(curve.by_seed),
                "lr_sensitivity": curve.mean if len(losses) > 1 else None,
                "lr_sensitivity_std": curve.std,
                "best_loss": losses.min(),
                "best_bits_per_byte": _at(by_lr, BITS_PER_BYTE, losses.idxmin()),
                **_answers(by_lr, losses.idxmin()),
                "best_lr": losses.idxmin(),
                "first_degraded_lr": first,
                "critical_lr": curve.median("critical_lr"),
                "first_diverging_lr": curve.median("first_diverging_lr"),
                "logit_max_at_first_degraded": None if first is None else _near(by_lr["logit_max"].median(), first),
                "logit_max_at_best": by_lr["logit_max"].median()[losses.idxmin()],
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _curve(group: pd.DataFrame) -> OverSeeds | None:
    try:
        return of_runs(group) if group["ended"].all() else None
    except ValueError:
        return None


def _at(by_lr: Any, column: str, lr: float) -> float | None:
    """Returns the median of a column at an LR, or None if the runs don't have it, such as bits per byte of no text."""
    return by_lr[column].median()[lr] if column in by_lr.obj else None


def _answers(by_lr: Any, lr: float) -> dict[str, float]:
    """Returns accuracy and share of solved runs at an LR, {} for data without answers.

    Runs either solve such a task or stay at guessing, so the share says more than the median accuracy.
    """
    if (accuracy := _at(by_lr, ACCURACY, lr)) is None or accuracy != accuracy:
        return {}
    return {"best_accuracy": accuracy, "solved": by_lr[ACCURACY].agg(lambda right: (right >= SOLVED).mean())[lr]}


SAME_SIZE = 1.05
"""An arm whose N is more than this times the smallest N of its shape has a column `own_N`, which is shown as its N."""

BITS_PER_BYTE, ACCURACY = "validation/bits_per_byte", "validation/accuracy"

SOLVED = 0.99
"""Accuracy from which a run counts as one that solves its task."""


def _near(values: pd.Series, lr: float) -> float:
    """Returns the value at the grid LR nearest to `lr`, because a median over seeds can lie between grid points."""
    import numpy as np

    return float(values.iloc[int(np.argmin(np.abs(np.log(values.index.to_numpy() / lr))))])


COLUMNS = {
    "N": "N", "arm": "arm", "ended": "runs", "lr_sensitivity": "LR sensitivity", "best_loss": "best loss",
    "best_bits_per_byte": "bits/byte", "best_accuracy": "accuracy", "solved": "solved", "best_lr": "at LR",
    "first_degraded_lr": "first degraded LR",
    "logit_max_at_first_degraded": "max logit there", "diverged": "diverged",
}  # fmt: skip
OF_ANSWERS = ("best_accuracy", "solved")
"""Columns that only a table of runs with answers shows."""


THREE_DECIMALS = ("lr_sensitivity", "best_loss", "best_bits_per_byte", "best_accuracy")


def titles(found: pd.DataFrame) -> dict[str, str]:
    """Returns the titles of the table's columns, by name."""
    return {name: title for name, title in COLUMNS.items() if name not in OF_ANSWERS or name in found}


def cells(found: pd.DataFrame) -> list[list[str]]:
    """Returns the cells of the table as text, row by row, in the order of `titles`."""
    rows = []
    for record in found.to_dict("records"):
        get = {k: (v if v == v else None) for k, v in record.items()}
        spread = get.get("lr_sensitivity_std")
        text = {k: f"{v:.3g}" if isinstance(v := get.get(k), float) else "-" for k in COLUMNS}
        text |= {k: f"{get[k]:.3f}" for k in THREE_DECIMALS if get.get(k) is not None}
        if spread is not None and text["lr_sensitivity"] != "-":
            text["lr_sensitivity"] += f" ± {spread:.3f}"
        text |= {"arm": record["arm"] or "-", "diverged": str(record["diverged"])}
        text["N"] = size_label(get.get("own_N") or record["N"])
        text["ended"] = f"{record['ended']} of {record['runs']}"
        text["logit_max_at_first_degraded"] = number(get.get("logit_max_at_first_degraded"))
        if (share := get.get("solved")) is not None:
            text["solved"] = f"{share:.0%}"
        rows.append([text[k] for k in titles(found)])
    return rows
