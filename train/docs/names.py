"""Writes the table of short forms into conf/README.md."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

from conf.axis import axes
from train.config.choices import CONF, default_choices
from train.config.names import SHORT, part
from train.config.schema import Config

README = CONF / "README.md"
BEGIN, END = "<!-- short forms: written by python -m train.docs -->\n", "<!-- end of the short forms -->\n"
EXAMPLES = {"model.name": "tiny", "attention.pattern": "odd", "optimizer.lr": 0.01, "optimizer.decay": "coupled",
            "optimizer.weight_decay": 0.1, "init_from": "1a2b3c4d", "precision": "bf16"}  # fmt: skip
"""Values of fields that a whole number would not suit."""


def files() -> dict[Path, str]:
    """Returns conf/README.md with the table of now."""
    before, begun, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"{README} lacks the line {(END if begun else BEGIN).strip()}")
    return {README: before + BEGIN + table() + END + after}


def table() -> str:
    """Returns a Markdown table, two fields a row: a field or axis, and how a value of it is written in a name."""
    cells = [f"`{key}` | `{part(key, _example(key))}`" for key in SHORT]
    half = (len(cells) + 1) // 2
    rows = [f"| {left} | {right} |" for left, right in zip_longest(cells[:half], cells[half:], fillvalue=" | ")]
    return "\n".join(["| field | in a name | field | in a name |", "|---|---|---|---|", *rows]) + "\n"


def _example(key: str) -> object:
    registry = axes(Config).get(key)
    if registry is not None:
        return max(choice for choice in registry.choices if choice != default_choices()[key])
    return EXAMPLES.get(key, 2)
