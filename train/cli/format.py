"""Formats numbers, durations and model sizes as short text."""

from __future__ import annotations

import math
from typing import Any


def number(value: Any) -> str:
    """Formats an int with thousands separators, a float with three decimals or digits, anything else as -."""
    if not isinstance(value, int | float):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if 1e-2 <= abs(value) < 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Formats seconds as 1h05m, 5m03s or 3s; not finite ones as ?."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def size_label(n: float) -> str:
    """Formats a parameter count: 98304 as 98k, 2359296 as 2.4M."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        # 999,600 should become 1.0M, not 1000k.
        if n >= 0.9995 * scale:
            return f"{n / scale:.1f}{unit}" if n < 9.95 * scale else f"{n / scale:.0f}{unit}"
    return f"{n:.0f}"
