"""Floors of the loss (`floor/unigram`, `floor/bigram`) of the runs that are shown together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("unigram", "bigram")

ALIKE = 0.02
"""Floors that differ by at most this many nats, as those of two draws of a language do, are shown as one."""


def level_range(runs: pd.DataFrame, column: str) -> tuple[float, float] | None:
    """Returns the lowest and highest value of the runs, or None if they have none."""
    known = runs[column].dropna() if column in runs else ()
    return (float(min(known)), float(max(known))) if len(known) else None


def common_level(runs: pd.DataFrame, column: str, alike: float = ALIKE) -> float | None:
    """Returns the value that the runs share, or None if they have none or values that are further apart."""
    found = level_range(runs, column)
    return sum(found) / 2 if found and found[1] - found[0] <= alike else None


def common_floor(runs: pd.DataFrame, name: str) -> float | None:
    """Returns the floor that the runs share, or None if they have none or were trained on different tokens."""
    return common_level(runs, f"floor/{name}")


def floors_text(runs: pd.DataFrame) -> str | None:
    """Returns "floors: unigram 3.230, bigram 2.502 nats", with ranges for runs on different tokens."""
    parts = []
    for name in NAMES:
        common, found = common_floor(runs, name), level_range(runs, f"floor/{name}")
        if common is not None:
            parts.append(f"{name} {common:.3f}")
        elif found:
            parts.append(f"{name} {found[0]:.3f} to {found[1]:.3f}")
    return f"floors: {', '.join(parts)} nats" if parts else None
