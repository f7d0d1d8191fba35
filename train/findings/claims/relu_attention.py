"""Attention logits without softmax: Figure E.11 of Wortsman et al. 2023, squared ReLU over the root of the length.

If logits grew because softmax saturates, they would not without it. Largest logits are those of the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.findings.arms import Arms, arms, pooled_std
from train.findings.base import Finding, register
from train.findings.null_claims import short
from train.findings.trends import Value, all_of
from train.results.figures import arms_against_lr
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = "Attention logits grow with the learning rate without softmax too: softmax is not what makes them grow."
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), section 3.2.5, Figure E.11"
SOFTMAX, RELU, NORMED = "softmax", "squared ReLU", "squared ReLU, qk-norm"
GROWTH = 10.0
"""Factor by which the largest logit must grow from the lowest LR of the grid to the highest, and by which it must
exceed that with qk-norm there. Set before these runs, in view of those of `qk_norm` (one seed): without it logits of
softmax grow by 28,000 to 57,000; with it too, by the norm's gains, 11 to 16 times: so the second condition."""


def trio(runs: pd.DataFrame) -> Arms:
    return arms("relu_attention", runs, (SOFTMAX, RELU, NORMED))


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = trio(runs)
    checks = [
        grows(sweep, SOFTMAX, "With softmax the largest attention logit grows with the LR"),
        grows(sweep, RELU, "With squared ReLU in its place it grows too"),
        bounded(sweep),
    ]
    ours = "The arm of squared ReLU with qk-norm is our control: growth without qk-norm has to be more than with it"
    return Verdict("relu_attention", checks, [ours, *sweep.notes()])


def log_logit(sweep: Arms, arm: str, n: int, lr: float) -> Value | None:
    """Mean over seeds of the log of a run's largest logit, the error by the spread pooled over all arms, sizes and LRs
    (a factor of 2 where no setting has two seeds). A run that went to NaN before a watch step counts as infinite."""
    rows = sweep.runs[(sweep.runs["arm"] == arm) & (sweep.runs["size"] == n) & (sweep.runs["optimizer.lr"] == lr)]
    logits = np.where(rows["logit_max"].isna() & (rows["state"] == "diverged"), math.inf, rows["logit_max"])
    if not len(rows) or np.isnan(logits.astype(float)).any():
        return None
    ended = sweep.runs[sweep.runs["ended"] & (sweep.runs["logit_max"] > 0)]
    noise = pooled_std(np.log(g["logit_max"]) for _, g in ended.groupby(["arm", "size", "optimizer.lr"]))
    error = (math.log(2) if noise is None else noise) / math.sqrt(len(rows))
    return Value(float(np.mean(np.log(logits.astype(float)))), error)


def _ends(sweep: Arms, n: int, *of: str) -> tuple[float, float]:
    """The lowest and the highest LR that these arms share at a size."""
    grids = [set(sweep.runs[(sweep.runs["arm"] == arm) & (sweep.runs["size"] == n)]["optimizer.lr"]) for arm in of]
    shared = set.intersection(*grids)
    return min(shared), max(shared)


def grows(sweep: Arms, arm: str, claim: str) -> Check:
    """Passes when, at every size, the largest logit at the highest LR is GROWTH times that at the lowest, by two
    standard errors; fails when it surely is not at some size."""
    sizes: list[dict[str, Any]] = []
    for n in sweep.sizes(arm):
        low, high = _ends(sweep, n, arm)
        a, b = log_logit(sweep, arm, n, low), log_logit(sweep, arm, n, high)
        if a and b and low < high:
            growth = b - a
            sizes.append(
                {"N": n, "lowest_lr": low, "highest_lr": high, "at_lowest": math.exp(a.value),
                 "at_highest": math.exp(b.value), "factor": math.exp(growth.value), "log_error": growth.error,
                 "grows": growth.above(math.log(GROWTH))}
            )  # fmt: skip
    gaps = sweep.gaps(arm)
    parts = [
        f"N={size_label(s['N'])} {short(s['at_lowest'])} at LR {s['lowest_lr']:g}, "
        f"{short(s['at_highest'])} at {s['highest_lr']:g} ({short(s['factor'])}x)"
        for s in sizes
    ]
    return Check(claim, None if gaps else all_of(s["grows"] for s in sizes), {"sizes": sizes, "needed": GROWTH},
                 gaps + "; ".join(parts))  # fmt: skip


def bounded(sweep: Arms) -> Check:
    """Passes when, at every size and the highest LR, the largest logit without qk-norm is GROWTH times that with it, by
    two standard errors: else what grows would be no more than any norm's gains."""
    sizes: list[dict[str, Any]] = []
    for n in sweep.sizes(RELU, NORMED):
        _, high = _ends(sweep, n, RELU, NORMED)
        a, b = log_logit(sweep, NORMED, n, high), log_logit(sweep, RELU, n, high)
        if a and b:
            ratio = b - a
            sizes.append(
                {"N": n, "lr": high, "with": math.exp(a.value), "without": math.exp(b.value),
                 "factor": math.exp(ratio.value), "log_error": ratio.error, "above": ratio.above(math.log(GROWTH))}
            )  # fmt: skip
    gaps = sweep.gaps(RELU, NORMED)
    parts = [
        f"N={size_label(s['N'])} LR {s['lr']:g} {short(s['with'])} with, {short(s['without'])} without" for s in sizes
    ]
    return Check(
        claim="With squared ReLU, qk-norm holds the logits",
        passed=None if gaps else all_of(s["above"] for s in sizes),
        numbers={"sizes": sizes, "needed": GROWTH},
        text=gaps + "; ".join(parts),
    )


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Loss, largest logit and entropy of |weights| against LR."""
    sweep = trio(runs)
    return {
        "loss_and_logits_against_lr": arms_against_lr(
            sweep.runs[sweep.runs["ended"]], {arm: arm for arm in sweep.names}
        )
    }


register(Finding("relu_attention", CLAIM, SOURCE, judge, draw, minutes=6))
