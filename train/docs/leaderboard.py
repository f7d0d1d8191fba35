"""Generates the tables of train/leaderboard/README.md from leaderboard.csv."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from train.docs.markers import ROOT, page
from train.leaderboard.table import cells, columns, heading

if TYPE_CHECKING:
    import pandas as pd

LEADERBOARD = ROOT / "train/leaderboard/leaderboard.csv"


def files() -> dict[Path, str]:
    import pandas as pd

    return page("train/leaderboard/README.md", {"leaderboard": markdown(pd.read_csv(LEADERBOARD))})


def markdown(table: pd.DataFrame) -> str:
    """Returns a table for each size, with the largest size and the best choice first."""
    parts = []
    for _, of in table.groupby("size", sort=False):
        shown = columns(of)
        lines = [f"{heading(of)}:", "", f"| {' | '.join(shown.values())} |"]
        lines += ["|" + "---|" * len(shown), *(f"| {' | '.join(row)} |" for row in cells(of))]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
