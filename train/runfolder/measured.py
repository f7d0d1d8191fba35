"""What the rows of a run's metrics say of the part that ran."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def measured(rows: Sequence[Mapping[str, Any]], loss_init: float) -> dict[str, Any]:
    """Returns counts of steps, extremes over watched rows with a finite loss, and the probes of the last of these."""
    watched = [row for row in rows if "attention/logit_max" in row or "residual/block0/rms" in row]
    finite = [row for row in watched if math.isfinite(row["train/loss"])] or watched
    trained = [row for row in rows if row["step"] >= 0]
    last = finite[-1] if finite else {}
    logit_max = [row["attention/logit_max"] for row in finite if "attention/logit_max" in row]
    entropy = [row["attention/entropy_min"] for row in finite if "attention/entropy_min" in row]
    return {
        "steps_above_init": sum(row["train/loss"] > loss_init for row in trained),
        "steps_done": len(trained),
        "logit_max": max(logit_max, default=None),
        "logit_max_final": logit_max[-1] if logit_max else None,
        "entropy_final": last.get("attention/entropy"),
        "entropy_min": min(entropy, default=None),
        "final": {k: v for k, v in last.items() if not isinstance(v, list)},
    }
