"""Width against depth: Figures 7, E.2 and E.3 of Wortsman et al. 2023.

Ladders may end at different N. They are compared at the largest N that all of them reach, between their own sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.findings.arms import Arms, arms
from train.findings.base import Finding, register
from train.findings.claims.qk_norm import LARGE_LOGIT
from train.findings.trends import Value, all_of, best_loss, in_order, mean, over_n, sensitivity, slope
from train.results.figures import against_size, loss_against_lr
from train.results.sensitivity import LRSensitivity
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = (
    "LR sensitivity grows faster with depth than with width, though depth gives the lower loss; scaling both together "
    "gives the lowest; without qk-layernorm attention logits grow with either."
)
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), section 3.2.3, Figures 7, E.2 and E.3"
WIDTH, DEPTH, JOINT = "width", "depth", "joint"
WITHOUT = ("width, no qk-norm", "depth, no qk-norm")
ARMS = (WIDTH, DEPTH, JOINT, *WITHOUT)
SAME = 1.1
"""Sizes within this factor count as the same N: norms make those of one N = 12 depth width^2 differ by a few per
cent."""
GROWTH = 2.0
"""Factor by which the largest attention logit must grow over a ladder: a rise of queries and keys by 1.4 each, as it
goes with their product. The paper's ladders are longer and their logits grow by more."""


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = arms("width_depth", runs, ARMS)
    checks = [faster_with_depth(sweep), lower_with_depth(sweep), lowest_jointly(sweep), growing_logits(sweep)]
    between = (
        "Ladders are compared at the largest N that they share, where one has no such size by a parabola in log N: "
        f"width and depth at N={_label(_shared(sweep, WIDTH, DEPTH))}, with joint at "
        f"N={_label(_shared(sweep, WIDTH, DEPTH, JOINT))}. Not judged: that joint scaling extrapolates more reliably"
    )
    return Verdict("width_depth", checks, [between, *sweep.notes()])


def _shared(sweep: Arms, *names: str) -> int | None:
    """The largest N that these ladders all reach, None when one of them has no complete curve."""
    tops = [max((n for n, of in sweep.curves if of == arm), default=None) for arm in names]
    found = [top for top in tops if top is not None]
    return min(found) if len(found) == len(tops) else None


def _label(n: int | None) -> str:
    return "-" if n is None else size_label(n)


def values_of(sweep: Arms, arm: str, of: Callable[[LRSensitivity], float]) -> dict[int, Value]:
    return {n: mean(sweep, curve, of) for (n, name), curve in sweep.curves.items() if name == arm}


def measured(points: Mapping[int, Value], n: int) -> int | None:
    """The size that counts as N, the nearest where several do."""
    near = min(points, key=lambda m: abs(math.log(m / n)))
    return near if max(near / n, n / near) < SAME else None


def at(points: Mapping[int, Value], n: int) -> Value:
    """The value at N: as measured, or on the parabola in log N through the three sizes next to it (a line for two), so
    that the bend of loss against log N doesn't favour a ladder that has this very size."""
    if (own := measured(points, n)) is not None:
        return points[own]
    near = sorted(points, key=lambda m: abs(math.log(m / n)))[:3]
    x = np.log(near) - math.log(n)
    # Row 0 of the inverse gives the constant term of the polynomial through the points, its value at n.
    weights = np.linalg.inv(np.vander(x, increasing=True))[0]
    value = sum(w * points[m].value for w, m in zip(weights, near, strict=True))
    return Value(float(value), math.hypot(*(w * points[m].error for w, m in zip(weights, near, strict=True))))


def faster_with_depth(sweep: Arms) -> Check:
    """Passes when the slope of log LR sensitivity against log N is larger for depth than for width by two standard
    errors, over the sizes within the range of N that both ladders cover. Fails when smaller by as much; open in
    between."""
    found = {arm: values_of(sweep, arm, sensitivity) for arm in (WIDTH, DEPTH)}
    gaps = sweep.gaps(*ARMS[:2])
    slopes: dict[str, Value | None] = dict.fromkeys(found)
    if all(found.values()):
        low, high = max(min(v) for v in found.values()), min(max(v) for v in found.values())
        for arm, values in found.items():
            points = {
                math.log(n): v.log() for n, v in values.items() if low <= n * SAME and n <= high * SAME and v.value > 0
            }
            slopes[arm] = slope(points)
    width, depth = slopes[WIDTH], slopes[DEPTH]
    more = depth - width if width and depth else None
    parts = [
        f"{arm} {slopes[arm] or '-'} ({', '.join(f'{size_label(n)} {v.value:.3f}' for n, v in values.items())} nats)"
        for arm, values in found.items()
    ]
    return Check(
        claim="LR sensitivity grows faster with N by depth than by width",
        passed=more.above(0) if more and not gaps else None,
        numbers={"slopes": {arm: s and s.numbers() for arm, s in slopes.items()}, "difference": more and more.numbers(),
                 "sensitivity": {arm: {n: v.numbers() for n, v in values.items()} for arm, values in found.items()}},
        text=f"{gaps}exponents: {'; '.join(parts)}; difference {more or '-'}",
    )  # fmt: skip


def lower_with_depth(sweep: Arms) -> Check:
    """Passes when, at the largest N that both ladders reach, the best loss is lower by depth than by width, by two
    standard errors; fails when higher by as much; open in between."""
    return _lower("At the largest shared N, the best loss is lower by depth than by width", sweep, DEPTH, [WIDTH])


def lowest_jointly(sweep: Arms) -> Check:
    """Passes when, at the largest N that all three ladders reach, the best loss of joint scaling is below those of
    width and of depth by two standard errors; fails when above one of them by as much; open in between."""
    return _lower(
        "At the largest shared N, joint scaling has a lower best loss than either", sweep, JOINT, [WIDTH, DEPTH]
    )


def _lower(claim: str, sweep: Arms, one: str, others: Sequence[str]) -> Check:
    n, gaps = _shared(sweep, one, *others), sweep.gaps(one, *others)
    points = {} if n is None else {arm: values_of(sweep, arm, best_loss) for arm in (one, *others)}
    losses = {arm: at(found, n) for arm, found in points.items() if n}
    own = {arm: measured(found, n) is not None for arm, found in points.items() if n}
    less = {arm: losses[arm] - losses[one] for arm in others} if losses else {}
    parts = [f"{arm} {value.value:.3f}" for arm, value in losses.items()]
    return Check(
        claim=claim,
        passed=None if gaps else all_of(value.above(0) for value in less.values()),
        numbers={"N": n, "best_loss": {arm: value.numbers() for arm, value in losses.items()},
                 "lower_by": {arm: value.numbers() for arm, value in less.items()},
                 "measured_at_N": own},
        text=f"{gaps}at N={_label(n)} {', '.join(parts) or '-'} nats; lower than "
        + (" and ".join(f"{arm} by {value}" for arm, value in less.items()) or "-"),
    )  # fmt: skip


def growing_logits(sweep: Arms) -> Check:
    """Passes when, without qk-norm and for width as for depth, the largest attention logit of a run (geometric mean
    over the LRs that all its sizes have, and over seeds) grows from the smallest to the largest N by a factor GROWTH at
    least, and no fewer runs pass LARGE_LOGIT at the largest than at the smallest: the failure that logits cause gets
    more frequent."""
    ladders: dict[str, dict[str, Any]] = {arm: found for arm in WITHOUT if (found := _logits(sweep, arm))}
    gaps = sweep.gaps(*WITHOUT)
    parts = [
        f"{arm} {', '.join(f'{size_label(n)} {v:.3g}' for n, v in found['logit_max'].items())}: "
        f"{found['growth']:.2g}x, above {LARGE_LOGIT:g}: {', '.join(map(str, found['above'].values()))} of "
        f"{found['runs']} runs"
        for arm, found in ladders.items()
    ]
    grown = [f["growth"] >= GROWTH and f["more_frequent"] for f in ladders.values()]
    return Check(
        claim="Without qk-norm, attention logits at the same LR grow with N by width as by depth (Figure E.2)",
        passed=None if gaps or len(ladders) < len(WITHOUT) else all(grown),
        numbers={"ladders": ladders, "needed_growth": GROWTH, "threshold": LARGE_LOGIT},
        text=f"{gaps}{'; '.join(parts) or '-'}",
    )


def _logits(sweep: Arms, arm: str) -> dict[str, Any] | None:
    runs = sweep.ended(arm)
    tables = {int(n): rows.groupby("optimizer.lr")["logit_max"] for n, rows in runs.groupby("size")}
    if len(tables) < 2:
        return None
    lrs = sorted(set.intersection(*(set(table.groups) for table in tables.values())))
    logs = {n: [float(np.log(table.get_group(lr)).mean()) for lr in lrs] for n, table in tables.items()}
    counts = {n: int(sum((table.get_group(lr) > LARGE_LOGIT).sum() for lr in lrs)) for n, table in tables.items()}
    small, large = min(logs), max(logs)
    return {
        "lrs": lrs,
        "logit_max": {n: math.exp(float(np.mean(values))) for n, values in logs.items()},
        "by_lr": {n: dict(zip(lrs, np.exp(values).tolist(), strict=True)) for n, values in logs.items()},
        "growth": math.exp(float(np.mean(logs[large]) - np.mean(logs[small]))),
        "runs": int(sum(len(tables[large].get_group(lr)) for lr in lrs)),
        "above": counts,
        "more_frequent": counts[large] >= counts[small],
    }


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Figures 7, E.2 and E.3: loss against LR for each ladder; LR sensitivity, best loss and largest logit against
    N."""
    sweep = arms("width_depth", runs, ARMS)
    logits: dict[str, dict[int, tuple[float, float | None]]] = {
        arm: {n: (v, None) for n, v in found["logit_max"].items()} for arm in WITHOUT if (found := _logits(sweep, arm))
    }
    quantities = {
        "LR sensitivity (nats)": {arm: over_n(sweep, arm, sensitivity) for arm in ARMS[:3]},
        "best loss (nats)": {arm: over_n(sweep, arm, best_loss) for arm in ARMS[:3]},
    }
    if logits:
        quantities["max attention logit"] = logits
    return {
        "loss_against_lr": loss_against_lr(in_order(sweep)),
        "over_size": against_size(quantities, linear=["best loss (nats)"]),
    }


register(Finding("width_depth", CLAIM, SOURCE, judge, draw, minutes=18, group="slow"))
