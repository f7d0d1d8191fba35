"""Generates the tables of train/leaderboard/README.md from leaderboard.csv and recipes.csv."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from train.docs.markers import ROOT, page
from train.leaderboard.table import cells, columns, heading

if TYPE_CHECKING:
    import pandas as pd

FOLDER = ROOT / "train/leaderboard"
TABLES = {"leaderboard_attention": FOLDER / "leaderboard.csv", "leaderboard_recipes": FOLDER / "recipes.csv"}
"""The table of each experiment."""
NONE = "Not trained yet.\n"


def files() -> dict[Path, str]:
    import pandas as pd

    tables = {path.stem: markdown(pd.read_csv(path)) if path.exists() else NONE for path in TABLES.values()}
    return page("train/leaderboard/README.md", tables)


def markdown(table: pd.DataFrame) -> str:
    """Returns a table for each size, with the largest size and the best choice first."""
    parts = []
    for _, of in table.groupby("size", sort=False):
        shown = columns(of)
        lines = [f"{heading(of)}:", "", f"| {' | '.join(shown.values())} |"]
        lines += ["|" + "---|" * len(shown), *(f"| {' | '.join(row)} |" for row in cells(of))]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)
