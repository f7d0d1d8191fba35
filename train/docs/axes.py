"""Generates the table of all axes and choices in models/README.md from the docstrings of the choices."""

from __future__ import annotations

from pathlib import Path

from train.cli.axes import table
from train.docs.markers import page


def files() -> dict[Path, str]:
    return page("models/README.md", {"axes": table()})
