"""qk-layernorm head by head against one over the model dimension: Figure E.8 of Wortsman et al. 2023."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.findings.arm_figures import arms_by_size
from train.findings.arms import Arms, arms, pm, pooled_std
from train.findings.base import Finding, register
from train.findings.null_claims import TOLERANCE, noise_note
from train.findings.trends import Value, all_of
from train.results.sensitivity import DEGRADED
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = "qk-layernorm head by head, with parameters that heads share, is slightly better than over the model dimension."
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), section 3.2.5, Figure E.8"
PER_HEAD, MODEL = "per head", "model dimension"
NO_GAIN = 0.01
"""Nats: a mean gain that is surely below this is none, as seeds of one run differ by more."""


def pair(runs: pd.DataFrame) -> Arms:
    return arms("per_head", runs, (PER_HEAD, MODEL))


def gain(sweep: Arms) -> tuple[Value | None, dict[int, list[float]]]:
    """Mean over sizes, LRs and seeds of the loss over the model dimension minus that head by head, losses of one size,
    LR and seed in pairs; and the differences by size. Its error is that of the pooled spread of losses between seeds,
    infinite with one seed; None without a pair."""
    by_size: dict[int, list[float]] = {}
    losses: dict[tuple[int, str, float], list[float]] = {}
    for n, (a, b) in sweep.together(PER_HEAD, MODEL):
        for arm, curve in ((PER_HEAD, a), (MODEL, b)):
            for one in curve.by_seed.values():
                for lr, loss in zip(one.lrs, one.losses, strict=True):
                    losses.setdefault((n, arm, lr), []).append(loss)
        for seed in sorted(a.by_seed.keys() & b.by_seed.keys()):
            by_size.setdefault(n, []).extend(np.subtract(b.by_seed[seed].losses, a.by_seed[seed].losses).tolist())
    found = [d for differences in by_size.values() for d in differences]
    if not found:
        return None, by_size
    noise = pooled_std(losses.values())
    error = math.inf if noise is None else noise * math.sqrt(2 / len(found))
    return Value(float(np.mean(found)), error), by_size


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = pair(runs)
    scope = "The paper doesn't say by what it is better: judged on the loss over the LR grid, and on LR sensitivity"
    checks = [lower_loss(sweep), slightly(sweep), no_more_sensitive(sweep)]
    return Verdict("per_head", checks, [scope, *noise_note(sweep), *sweep.notes()])


def lower_loss(sweep: Arms) -> Check:
    """Passes when the mean gain is above zero by two standard errors, fails when it is below NO_GAIN by two: an effect
    that is called slight is not refuted by not being seen."""
    mean, by_size = gain(sweep)
    gaps = sweep.gaps(PER_HEAD, MODEL)
    passed = None
    if mean and not gaps:
        passed = True if mean.above(0) else False if mean.below(NO_GAIN) else None
    best = [
        {"N": n, "gain": float(np.mean(by_size[n])), "pairs": len(by_size[n]),
         "best_per_head": float(np.mean([one.best_loss for one in a.by_seed.values()])),
         "best_model": float(np.mean([one.best_loss for one in b.by_seed.values()]))}
        for n, (a, b) in sweep.together(PER_HEAD, MODEL) if n in by_size
    ]  # fmt: skip
    parts = [f"N={size_label(s['N'])} {s['gain']:+.3f} (best {s['best_model']:.3f} -> {s['best_per_head']:.3f})"
             for s in best]  # fmt: skip
    return Check(
        claim="Loss is lower head by head",
        passed=passed,
        numbers={"gain": mean and mean.numbers(), "sizes": best, "no_gain": NO_GAIN},
        text=f"{gaps}mean gain {mean or '-'} nats over {sum(s['pairs'] for s in best)} pairs: {'; '.join(parts)}",
    )


def slightly(sweep: Arms) -> Check:
    """Passes when the mean gain is smaller than what counts as degraded, up or down, by two standard errors: the two
    norms are of one kind, unlike qk-norm and none."""
    mean, _ = gain(sweep)
    gaps = sweep.gaps(PER_HEAD, MODEL)
    return Check(
        claim=f"The two differ by less than {DEGRADED:g} nats",
        passed=abs(mean).below(DEGRADED) if mean and not gaps else None,
        numbers={"gain": mean and mean.numbers(), "limit": DEGRADED},
        text=f"{gaps}mean gain {mean or '-'} nats",
    )


def no_more_sensitive(sweep: Arms) -> Check:
    """Passes when, at every size, LR sensitivity head by head is not higher by TOLERANCE, with two standard errors to
    spare; fails when it is higher by more than that at some size."""
    sizes: list[dict[str, Any]] = []
    for n, (a, b) in sweep.together(PER_HEAD, MODEL):
        error = math.inf
        if sweep.noise is not None:
            error = sweep.noise * math.sqrt(1 / len(a.by_seed) + 1 / len(b.by_seed))
        sizes.append(
            {"N": n, "per_head": a.mean, "model": b.mean, "std_per_head": a.std, "std_model": b.std, "error": error,
             "not_higher": Value(a.mean - b.mean, error).below(TOLERANCE)}
        )  # fmt: skip
    gaps = sweep.gaps(PER_HEAD, MODEL)
    parts = [
        f"N={size_label(s['N'])} {pm(s['model'], s['std_model'])} -> {pm(s['per_head'], s['std_per_head'])} "
        f"(two standard errors {2 * s['error']:.3f})"
        for s in sizes
    ]
    return Check(
        claim="LR sensitivity is no higher head by head",
        passed=None if gaps else all_of(s["not_higher"] for s in sizes),
        numbers={"sizes": sizes, "tolerance": TOLERANCE},
        text=f"{gaps}model dimension -> head by head: {'; '.join(parts)}",
    )


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    return {"loss_against_lr": arms_by_size(pair(runs))}


register(Finding("per_head", CLAIM, SOURCE, judge, draw, minutes=7))
