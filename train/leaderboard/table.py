"""The table of the leaderboard: its columns, and its cells as text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from train.cli.format import number, size_label

if TYPE_CHECKING:
    import pandas as pd


EXPERIMENT = "leaderboard_attention"

SIGNIFICANT = 0.05
"""p-values below this are marked."""

COLUMNS = {
    "arm": "choice", "loss": "loss", "next_p": "p", "best_lr": "at LR", "sensitivity": "sensitivity",
    "expected": "mean", "range": "range", "rank_range": "by range", "critical": "critical", "degraded": "degrades",
    "diverged": "diverges", "broke": "broke first", "logit_max": "max logit", "entropy": "entropy",
    "sink_rate": "sinks", "kurtosis": "kurtosis", "N": "N", "step": "step",
}  # fmt: skip
LEGEND = """\
loss: at the best LR, over the confirming seeds; ~: of the window's seed, biased low. p: Welch's t against the choice
that is next by loss, * below 0.05.
mean: over the window; it ranks. range: factor between LRs within 0.1 nats of the best. critical: LR that adds 0.1.
broke first: the probe that first passes all that sound LRs reach, at the first LR that is degraded."""
SHORT = {
    "attention logits": "logits", "attention entropy": "entropy", "output logits, log^2 Z": "log Z",
    "RMS(g / sqrt v)": "g / sqrt v", "gradient / epsilon": "g / eps", "residual RMS": "residual",
}  # fmt: skip
"""Names of signs in the table."""
LESS = (
    "step", "N", "kurtosis", "sink_rate", "entropy", "logit_max", "diverged", "sensitivity", "degraded", "best_lr",
    "rank_range",
)  # fmt: skip
"""Columns that a narrow terminal leaves out, in this order."""


def heading(table: pd.DataFrame) -> str:
    """Returns what the rows of a size are called: by the median of N, as choices have parameters of their own."""
    return f"N = {size_label(int(table['N'].median()))}"


def columns(table: pd.DataFrame) -> dict[str, str]:
    """Returns the columns and headings of which the table has any value."""
    known = {"arm", "loss", *(name for name in table if table[name].notna().any())}
    return {name: text for name, text in COLUMNS.items() if name in known}


def cells(table: pd.DataFrame) -> list[list[str]]:
    """Returns the cells of the table as text, row by row, in the order of its columns."""
    shown = columns(table)
    return [[_cell(row, column) for column in shown] for row in table.to_dict("records")]


def _cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if column == "arm":
        return str(value)
    if row["ended"] < row["runs"]:
        return f"{row['ended']} of {row['runs']} runs, {row['failed']} failed" if column == "loss" else ""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return f"~{row['best']:.3f}" if column == "loss" and row.get("best", math.nan) > 0 else "-"
    if column == "loss":
        return f"{value:.3f}" if math.isnan(row["std"]) else f"{value:.3f} ± {row['std']:.3f}"
    if column == "broke":
        return SHORT[value]
    if column in ("best_lr", "degraded", "diverged", "rank_range"):
        return f"{value:g}"
    if column == "next_p":
        return f"{value:.3f}{'*' if value < SIGNIFICANT else ''}"
    if column == "critical":
        return f"{value:.2g}"
    if column == "range":
        return f"{value:.0f}x"
    return f"{value:,.0f}" if column == "N" else f"{value:.2f}" if column in ("step", "sink_rate") else number(value)
