"""Floors of the loss (`floor/unigram`, `floor/bigram`) of the runs that are shown together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("unigram", "bigram")

ALIKE = 0.02
"""Floors that differ by at most this many nats, as those of two draws of a language do, are shown as one."""


def floor_range(runs: pd.DataFrame, name: str) -> tuple[float, float] | None:
    """Returns the lowest and highest floor of the runs, or None if they have none."""
    known = runs[f"floor/{name}"].dropna() if f"floor/{name}" in runs else ()
    return (float(min(known)), float(max(known))) if len(known) else None


def common_floor(runs: pd.DataFrame, name: str) -> float | None:
    """Returns the floor that the runs share, or None if they have none or were trained on different tokens."""
    found = floor_range(runs, name)
    return sum(found) / 2 if found and found[1] - found[0] <= ALIKE else None


def floors_text(runs: pd.DataFrame) -> str | None:
    """Returns "floors: unigram 3.230, bigram 2.502 nats", with ranges for runs on different tokens."""
    parts = []
    for name in NAMES:
        common, found = common_floor(runs, name), floor_range(runs, name)
        if common is not None:
            parts.append(f"{name} {common:.3f}")
        elif found:
            parts.append(f"{name} {found[0]:.3f} to {found[1]:.3f}")
    return f"floors: {', '.join(parts)} nats" if parts else None
