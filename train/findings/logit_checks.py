"""Whether an arm holds the attention logits of softmax, and bears larger LRs for it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from train.cli.format import size_label
from train.findings.arms import Arms
from train.findings.null_claims import short
from train.findings.pairs import Metrics, lowered, pairs
from train.findings.probes import labelled
from train.results.verdict import Check

RISE = 1.25
"""Factor by which the critical LR must rise: as much as `qk_norm` asks it to fall with size."""


def slower_logits(sweep: Arms, metrics: Metrics, base: str, arm: str) -> Check:
    """`lowered` of the largest logit of the whole run, over all runs, the degraded among them."""
    found = pairs(sweep, metrics, base, arm, "logit_max", healthy=False)
    return lowered(f"The largest attention logit of a run is lower with {arm}", found)


def no_explosion(sweep: Arms, metrics: Metrics, base: str, arm: str) -> Check:
    """`lowered` of the largest logit at the LRs that degrade the base: where its logits explode."""
    found = pairs(sweep, metrics, base, arm, "logit_max", healthy=False)
    rows = labelled(sweep, base)
    broken = {(int(r["size"]), float(r["optimizer.lr"]), int(r["seed"]))
              for r in rows.to_dict("records") if r["degraded"]}  # fmt: skip
    kept = [p for p in found.values if (p["N"], p["lr"], p["seed"]) in broken]
    return lowered(
        f"At the LRs that degrade {base} the largest logit is lower with {arm}", dataclasses.replace(found, values=kept)
    )


def bears(sweep: Arms, base: str, arm: str) -> Check:
    """Passes when, at every size, the LR at which the loss of the arm degrades is higher by RISE; fails when it is no
    higher at some size; open where neither degrades within the grid."""
    sizes: list[dict[str, Any]] = []
    for n, curves in sweep.together(base, arm):
        a, b = (curve.median("critical_lr") or math.inf for curve in curves)
        ratio = None if math.isinf(a) and math.isinf(b) else b / a
        sizes.append({"N": n, "base": a, "arm": b, "ratio": ratio})
    gaps, ratios = sweep.gaps(base, arm), [s["ratio"] for s in sizes]
    passed = None
    if not gaps and any(r is not None and r <= 1 for r in ratios):
        passed = False
    elif not gaps and ratios and all(r is not None and r >= RISE for r in ratios):
        passed = True
    parts = [f"N={size_label(s['N'])} {_lr(s['base'])} -> {_lr(s['arm'])}" for s in sizes]
    return Check(f"Loss degrades at a larger LR with {arm}", passed, {"sizes": sizes, "needed_ratio": RISE},
                 f"{gaps}degrades at LR {'; '.join(parts) or '-'}")  # fmt: skip


def _lr(value: float) -> str:
    return "none of the grid" if math.isinf(value) else short(value)
