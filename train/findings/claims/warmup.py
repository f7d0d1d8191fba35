"""Length of the warm-up: Figure 5 of Wortsman et al. 2023, judged on curves of loss against LR, one an arm.

Arms differ in `schedule.warmup_fraction` alone and are taken in its order, whatever their names and number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from train.cli.format import size_label
from train.findings.arm_figures import arms_by_size
from train.findings.arms import Arms, arms, pm
from train.findings.base import Finding, register
from train.findings.null_claims import by_value
from train.findings.trends import LEAST_ERROR, mean, mean_loss, sensitivity, spread
from train.results.sensitivity import DEGRADED
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = (
    "A longer warm-up lowers LR sensitivity and loss, most for the larger models, which don't bear the largest "
    "learning rates without it."
)
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), section 3.2.1, Figure 5"
RISE = 1.25
"""Factor by which the critical LR must rise with the warm-up: as much as `qk_norm` asks it to fall with size."""


def ladder(runs: pd.DataFrame) -> Arms:
    """The arms from the shortest warm-up to the longest. ConfigError when they don't differ in it."""
    return arms("warmup", runs, by_value("warmup", runs, "schedule.warmup_fraction"))


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = ladder(runs)
    checks = [lower_sensitivity(sweep), lower_loss(sweep), most_for_large(sweep), bears_larger_lr(sweep)]
    reached = "Small models don't diverge: an LR that a model doesn't bear is one that degrades it"
    return Verdict("warmup", checks, [reached, *sweep.notes()])


def lower_sensitivity(sweep: Arms) -> Check:
    """Passes when, at every size, LR sensitivity is lower with the longest warm-up than with the shortest, and from one
    length to the next never higher, each by what `Arms.needed` asks for."""
    sizes: list[dict[str, Any]] = []
    for n, curves in sweep.together(*sweep.names):
        steps = [b.mean - a.mean - sweep.needed(a, b) for a, b in itertools.pairwise(curves)]
        first, last = curves[0], curves[-1]
        sizes.append(
            {"N": n, "sensitivity": [c.mean for c in curves], "std": [c.std for c in curves],
             "fall": first.mean - last.mean, "needed_fall": sweep.needed(first, last),
             "rises": any(step > 0 for step in steps)}
        )  # fmt: skip
    gaps = sweep.gaps()
    parts = [f"N={size_label(s['N'])} {' -> '.join(map(pm, s['sensitivity'], s['std']))}" for s in sizes]
    return Check(
        claim="LR sensitivity falls with the length of the warm-up at every size",
        passed=None if gaps or not sizes else all(s["fall"] > s["needed_fall"] and not s["rises"] for s in sizes),
        numbers={"sizes": sizes, "arms": list(sweep.names)},
        text=f"{gaps}{'; '.join(parts)} nats",
    )


def lower_loss(sweep: Arms) -> Check:
    """Passes when, at every size, the mean loss over the LR grid is lower with the longest warm-up than with the
    shortest by two standard errors of the difference. The best loss of each curve is in `numbers`."""
    sizes: list[dict[str, Any]] = []
    for n, curves in sweep.together(*sweep.names):
        means = [mean(sweep, curve, mean_loss) for curve in curves]
        fall = means[0] - means[-1]
        sizes.append(
            {"N": n, "mean_loss": [m.value for m in means], "fall": fall.value, "error": fall.error,
             "best_loss": [c.first.best_loss for c in curves], "at_largest_lr": [c.first.losses[-1] for c in curves],
             "lower": bool(fall.above(0))}
        )  # fmt: skip
    gaps = sweep.gaps()
    parts = [
        f"N={size_label(s['N'])} by {s['fall']:.3f} ± {s['error']:.3f} (best loss by "
        f"{s['best_loss'][0] - s['best_loss'][-1]:.3f}, at the largest LR by "
        f"{s['at_largest_lr'][0] - s['at_largest_lr'][-1]:.3f})"
        for s in sizes
    ]
    return Check(
        claim="Loss, as the mean over the LR grid, is lower with the longest warm-up than with the shortest",
        passed=None if gaps or not sizes else all(s["lower"] for s in sizes),
        numbers={"sizes": sizes, "spread": spread(sweep, mean_loss), "least_error": LEAST_ERROR},
        text=f"{gaps}lower at {sum(s['lower'] for s in sizes)} of {len(sizes)} sizes: {'; '.join(parts)} nats",
    )


def most_for_large(sweep: Arms) -> Check:
    """Passes when the longest warm-up lowers LR sensitivity by more at the largest size than at the smallest, by two
    standard errors; fails when by less; open in between and with a single size."""
    found = sweep.together(*sweep.names)
    falls = {n: mean(sweep, curves[0], sensitivity) - mean(sweep, curves[-1], sensitivity) for n, curves in found}
    gaps = sweep.gaps()
    more = falls[max(falls)] - falls[min(falls)] if len(falls) > 1 else None
    parts = [f"N={size_label(n)} {fall}" for n, fall in falls.items()]
    return Check(
        claim="The longest warm-up lowers LR sensitivity most at the largest size",
        passed=more.above(0) if more and not gaps else None,
        numbers={"falls": {n: fall.numbers() for n, fall in falls.items()}, "more": more and more.numbers()},
        text=f"{gaps}lower by {'; '.join(parts)}{f'; difference {more}' if more else ''} nats",
    )


def bears_larger_lr(sweep: Arms) -> Check:
    """Passes when, at the largest size, the shortest warm-up degrades (loss more than DEGRADED above its best, at a
    larger LR) and the critical LR with the longest is higher by a factor RISE at least, or beyond the grid. The paper
    has it at LR 0.3, where large models diverge. None when the shortest never degrades."""
    found = sweep.together(*sweep.names)
    gaps = sweep.gaps()
    critical = [curve.median("critical_lr") for curve in found[-1][1]] if found else []
    passed, rise = None, None
    if critical and critical[0]:
        rise = math.inf if critical[-1] is None else critical[-1] / critical[0]
        passed = rise >= RISE
    top = sweep.runs["optimizer.lr"].max()
    lrs = [f"{lr:.2g}" if lr else f"> {top:g}" for lr in critical]
    parts = [f"{arm} {lr}" for arm, lr in zip(sweep.names, lrs, strict=False)]
    return Check(
        claim="At the largest size, the LR at which the loss degrades is higher with the longest warm-up",
        passed=None if gaps else passed,
        numbers={"critical_lr": critical, "rise": rise, "needed_rise": RISE, "margin": DEGRADED},
        text=f"{gaps}critical LR at N={size_label(found[-1][0]) if found else '-'}: {', '.join(parts) or '-'}",
    )


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Figure 5: loss against LR for each length, and LR sensitivity against N."""
    return {"loss_and_sensitivity": arms_by_size(ladder(runs))}


register(Finding("warmup", CLAIM, SOURCE, judge, draw, minutes=11))
