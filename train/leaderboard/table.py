"""The table of the leaderboard: its columns, and its cells as text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from train.cli.format import number

if TYPE_CHECKING:
    import pandas as pd


EXPERIMENT = "leaderboard_attention"

COLUMNS = {
    "arm": "choice", "loss": "loss at the best LR", "best_lr": "at LR", "sensitivity": "LR sensitivity",
    "expected": "mean over the window", "degraded": "degrades at LR", "diverged": "diverges at LR",
    "logit_max": "max logit there", "entropy": "entropy there", "sink_rate": "sink rate", "kurtosis": "kurtosis",
    "N": "N", "step": "step",
}  # fmt: skip


def cells(table: pd.DataFrame) -> list[list[str]]:
    """Returns the cells of the table as text, row by row, in the order of COLUMNS."""
    return [[_cell(row, column) for column in COLUMNS] for row in table.to_dict("records")]


def _cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if column == "arm":
        return str(value)
    if row["ended"] < row["runs"]:
        return f"{row['ended']} of {row['runs']} runs, {row['failed']} failed" if column == "loss" else ""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if column == "loss":
        return f"{value:.3f}" if math.isnan(row["std"]) else f"{value:.3f} ± {row['std']:.3f}"
    if column in ("best_lr", "degraded", "diverged"):
        return f"{value:g}"
    return f"{value:,.0f}" if column == "N" else f"{value:.2f}" if column in ("step", "sink_rate") else number(value)
