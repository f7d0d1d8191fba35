"""qk-layernorm and attention-logit growth: Figures 1 and 2 of Wortsman et al. 2023, judged on a ladder of sizes.

The sweep crosses model size, qk_norm (none and one other) and learning rate, at one or more seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from conf.axis import ConfigError
from train.cli.format import size_label
from train.findings.arms import Arms, arms, pm
from train.findings.base import Finding, register
from train.results.figures import arms_against_lr, arms_in_time, sensitivity_against_size
from train.results.sensitivity import DEGRADED
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = (
    "Without qk-layernorm attention logits grow until training breaks, at a learning rate that falls with model size; "
    "with it, loss depends far less on the learning rate."
)
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), section 3.1.1, Figures 1 and 2"
PAPER_LRS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)

NONE = "none"
FALL = 1.25
"""Factor by which the critical LR must fall from the smallest to the largest size: well beyond what noise does, as
0.02 nats between seeds move the crossing by about 6% where the loss rises by 0.4 nats for a threefold LR."""
RISE = 1.1
"""Factor by which it may rise between neighbouring sizes before that counts as a rise."""
LARGE_LOGIT = 1e3
"""Attention logit around which loss deteriorates when logits are set by hand (Figure 10)."""
DIVERGED_LOGIT = 1e4
"""All of the paper's models above this logit diverged (Figure 9)."""
SHARE = 0.5
"""Of the degraded runs, those that large logits must account for."""
CLEARLY_BELOW = 3.0
"""A run is clear of the critical LR when its LR is at least this factor below, half a decade and so one step of the
paper's grid: loss degrades gradually near it."""
AGREE = DEGRADED
"""Nats by which the arms may differ below the critical LR: less than what counts as degraded."""


def pair(runs: pd.DataFrame, finding: str = "qk_norm") -> Arms:
    """The arms without and with qk-norm. ConfigError when the sweep is not one over size, qk_norm, LR and seed.

    Other findings judge the same sweep.
    """
    names = sorted(runs["qk_norm.name"].dropna().unique()) if "qk_norm.name" in runs else []
    others = [name for name in names if name != NONE]
    if NONE not in names or not others:
        raise ConfigError(f"finding {finding} compares qk_norm=none with another, this sweep has {', '.join(names)}")
    with_ = "layernorm" if "layernorm" in others else others[0]
    return arms(finding, runs.assign(arm=runs["qk_norm.name"]), (NONE, with_))


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = pair(runs)
    checks = [lower_sensitivity(sweep), falling_critical_lr(sweep), large_logits(sweep), same_below(sweep)]
    return Verdict("qk_norm", checks, notes(sweep))


def lower_sensitivity(sweep: Arms) -> Check:
    """Passes when, at every size, LR sensitivity with qk-norm is lower by what `Arms.needed` asks for."""
    sizes: list[dict[str, Any]] = []
    for n, (without, with_) in sweep.together(*sweep.names):
        difference, needed = without.mean - with_.mean, sweep.needed(without, with_)
        sizes.append(
            {"N": n, "without": without.mean, "with": with_.mean, "std_without": without.std, "std_with": with_.std,
             "seeds": len(without.by_seed), "ratio": without.mean / with_.mean if with_.mean else None,
             "difference": difference, "needed_difference": needed, "lower": difference > needed}
        )  # fmt: skip
    gaps = sweep.gaps(*sweep.names)
    parts = [
        f"N={size_label(s['N'])} {pm(s['without'], s['std_without'])} -> {pm(s['with'], s['std_with'])} nats"
        for s in sizes
    ]
    return Check(
        claim="LR sensitivity is lower with qk-norm at every size",
        passed=None if gaps or not sizes else all(s["lower"] for s in sizes),
        numbers={"sizes": sizes},
        text=f"{gaps}lower at {sum(s['lower'] for s in sizes)} of {len(sizes)} sizes: {'; '.join(parts)}",
    )


def falling_critical_lr(sweep: Arms) -> Check:
    """Passes when the critical LR without qk-norm (median over seeds) never rises by more than a factor RISE from one
    size to the next and falls by at least FALL over the ladder.

    It is where the loss crosses best + DEGRADED between two grid points, so that a fall finer than the grid is seen;
    a size that never degrades counts as one whose critical LR lies beyond the grid. None at all: not decided.
    """
    without, top = sweep.names[0], float(sweep.runs["optimizer.lr"].max())
    sizes: list[dict[str, Any]] = []
    for n in sweep.sizes():
        if (n, without) not in sweep.curves:
            continue
        curve, other = sweep.curves[n, without], sweep.curves.get((n, sweep.names[1]))
        logs = [math.log(s.critical_lr) for s in curve.by_seed.values() if s.critical_lr is not None]
        sizes.append(
            {"N": n, "critical_lr": curve.median("critical_lr"), "std_log_critical_lr": _std(logs),
             "first_degraded_lr": curve.median("first_degraded_lr"),
             "first_diverging_lr": curve.median("first_diverging_lr"),
             "critical_lr_with": other.median("critical_lr") if other else None}
        )  # fmt: skip
    critical = [s["critical_lr"] or math.inf for s in sizes]
    steps = [b / a for a, b in itertools.pairwise(critical) if not math.isinf(a)]
    fall = min(critical[0], top) / critical[-1] if sizes else 0.0
    gaps = sweep.gaps(without)
    decided = len(sizes) > 1 and min(critical) < math.inf and not gaps
    parts = [
        f"N={size_label(s['N'])} {_lr(s['critical_lr'], top)} (grid {_lr(s['first_degraded_lr'], top)})" for s in sizes
    ]
    return Check(
        claim="Without qk-norm, the LR at which the loss degrades falls with N",
        passed=all(step <= RISE for step in steps) and fall >= FALL if decided else None,
        numbers={"sizes": sizes, "fall": fall, "needed_fall": FALL, "largest_rise": max(steps, default=None),
                 "allowed_rise": RISE, "margin": DEGRADED, "largest_lr": top},
        text=f"{gaps}critical LR falls by {fall:.2f}x: {'; '.join(parts)}",
    )  # fmt: skip


def large_logits(sweep: Arms) -> Check:
    """Passes when, without qk-norm, some run's largest attention logit passes LARGE_LOGIT, every such run is degraded,
    and at least SHARE of the degraded runs are such runs.

    Logits that large are then enough for the break and its usual companion, as in Figures 2, 9 and 10. Not all degraded
    runs need them: too large an LR also hurts in other ways, as the runs with qk-norm show. None when nothing broke.
    """
    without, with_ = (_table(sweep, arm) for arm in sweep.names)
    gaps = sweep.gaps(sweep.names[0])
    above, degraded = without["above"], without["degraded"]
    if gaps or without["unknown"] or not (above or degraded):
        passed = None
    else:
        passed = above > 0 and without["above_degraded"] == above and without["above_degraded"] >= SHARE * degraded
    return Check(
        claim=f"Without qk-norm, max attention logits above {LARGE_LOGIT:g} go with degraded runs",
        passed=passed,
        numbers={"without": without, "with": with_, "threshold": LARGE_LOGIT, "needed_share": SHARE},
        text=f"{gaps}{without['above_degraded']} of {above} runs above {LARGE_LOGIT:g} degraded "
        f"({without['diverging_degraded']} of {without['diverging']} above {DIVERGED_LOGIT:g}); "
        f"{without['above_degraded']} of {degraded} degraded runs are above; with qk-norm {with_['above']} of "
        f"{with_['runs']} are above, {with_['degraded']} degraded",
    )


def _table(sweep: Arms, arm: str) -> dict[str, Any]:
    """Counts of runs by largest attention logit of the whole run, and by degraded or not."""
    logits, degraded = [], []
    for (n, of), curve in sweep.curves.items():
        for seed, found in curve.by_seed.items() if of == arm else ():
            rows = sweep.runs[(sweep.runs["size"] == n) & (sweep.runs["arm"] == arm) & (sweep.runs["seed"] == seed)]
            rows = rows.sort_values("optimizer.lr")
            # A run that went to NaN before its first watch step has no finite logit.
            broke = (rows["state"] == "diverged").to_numpy()
            largest = rows["logit_max"].to_numpy(dtype=float)
            logits += np.where(np.isnan(largest) & broke, np.inf, largest).tolist()
            degraded += list(found.degraded)
    logit, bad = np.array(logits, dtype=float), np.array(degraded, dtype=bool)
    above, diverging = logit > LARGE_LOGIT, logit > DIVERGED_LOGIT
    return {
        "runs": len(logit),
        "unknown": int(np.isnan(logit).sum()),
        "degraded": int(bad.sum()),
        "above": int(above.sum()),
        "above_degraded": int((above & bad).sum()),
        "above_not_degraded": int((above & ~bad).sum()),
        "below_degraded": int((~above & bad).sum()),
        "below_not_degraded": int((~above & ~bad).sum()),
        "diverging": int(diverging.sum()),
        "diverging_degraded": int((diverging & bad).sum()),
        "share_of_degraded_above": float((above & bad).sum() / bad.sum()) if bad.any() else None,
        "least_logit_degraded": float(logit[bad].min()) if bad.any() else None,
        "largest_logit_not_degraded": float(logit[~bad].max()) if (~bad).any() else None,
    }


def same_below(sweep: Arms) -> Check:
    """Passes when the arms' final losses differ by less than AGREE at every LR that is at least CLEARLY_BELOW below the
    critical LR without qk-norm, seed by seed (Appendix B: the curves coincide there). None without such an LR."""
    rows: list[dict[str, Any]] = []
    for n, (without, with_) in sweep.together(*sweep.names):
        for seed, a in without.by_seed.items():
            for lr, loss, other in zip(a.lrs, a.losses, with_.by_seed[seed].losses, strict=True):
                if a.critical_lr is None or lr < a.critical_lr:
                    far = a.critical_lr is None or lr * CLEARLY_BELOW <= a.critical_lr
                    rows.append({"N": n, "lr": lr, "seed": seed, "difference": abs(loss - other), "clear": far})
    clear = [row for row in rows if row["clear"]]
    worst = max(clear, key=lambda row: row["difference"], default=None)
    gaps = sweep.gaps(*sweep.names)
    text = "no LR is clear of the critical one"
    if worst:
        text = (
            f"largest difference {worst['difference']:.3f} nats (N={size_label(worst['N'])}, LR {worst['lr']:g}) "
            f"over {len(clear)} pairs, {max(row['difference'] for row in rows):.3f} up to the critical LR itself"
        )
    return Check(
        claim="Below the critical LR, loss is the same with and without qk-norm",
        passed=worst["difference"] < AGREE if worst and not gaps else None,
        numbers={"largest": worst, "pairs": len(clear), "tolerance": AGREE, "factor_below": CLEARLY_BELOW,
                 "mean": float(np.mean([row["difference"] for row in clear])) if clear else None,
                 "largest_up_to_critical": max((row["difference"] for row in rows), default=None)},
        text=gaps + text,
    )  # fmt: skip


def notes(sweep: Arms) -> list[str]:
    """The LR grid and how it differs from the paper's, length, seeds, and what was not judged."""
    lrs = sorted(sweep.runs["optimizer.lr"].unique().tolist())
    same = len(lrs) == len(PAPER_LRS) and np.allclose(lrs, PAPER_LRS)
    paper = f"{len(PAPER_LRS)} from {PAPER_LRS[0]:g} to {PAPER_LRS[-1]:g}"
    found = ["The LR grid is the paper's" if same else f"The paper's LR grid is {paper}"]
    if sweep.names[1] != "layernorm":
        found.append(f"The arm with qk-norm is qk_norm={sweep.names[1]}; the paper's is layernorm")
    for arm in sweep.names:
        values = ", ".join(f"{sweep.curves[n, arm].mean:.3f}" for n in sweep.sizes() if (n, arm) in sweep.curves)
        if values:
            found.append(f"Not judged, LR sensitivity from small to large N with qk_norm={arm}: {values}")
    return [*found, *sweep.notes()]


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Figure 1's two halves with the probes behind them, and Figure 2's curves at the smallest and largest size."""
    sweep = pair(runs)
    ended = runs[runs["ended"] & runs["qk_norm.name"].isin(sweep.names)].assign(arm=lambda f: f["qk_norm.name"])
    lines = {sweep.names[1]: "with qk-norm", sweep.names[0]: "without"}
    figures = {"loss_and_logits_against_lr": arms_against_lr(ended, lines)}
    if sweep.curves:
        figures["lr_sensitivity"] = sensitivity_against_size(sweep.curves, lines)
    shown = {n: run for n in (sweep.sizes()[0], sweep.sizes()[-1]) if (run := _broken(sweep, n)) is not None}
    rows = {(n, arm): metrics[run] for n, (_, named) in shown.items() for arm, run in named.items()}
    rows = {key: frame for key, frame in rows.items() if not frame.empty}
    if rows:
        figures["loss_and_logits_in_time"] = arms_in_time(rows, {n: lr for n, (lr, _) in shown.items()}, lines)
    return figures


def _broken(sweep: Arms, n: int) -> tuple[float, dict[str, str]] | None:
    """The smallest LR at which the logits without qk-norm are large (else the largest LR), and the run of each arm."""
    rows = sweep.runs[sweep.runs["size"] == n]
    rows = rows[rows["seed"] == rows["seed"].min()].sort_values("optimizer.lr")
    without = rows[rows["arm"] == sweep.names[0]]
    if without.empty:
        return None
    large = without[without["logit_max"] > LARGE_LOGIT]
    lr = float((large if len(large) else without.tail(1))["optimizer.lr"].iloc[0])
    runs = rows[rows["optimizer.lr"] == lr]
    return lr, dict(zip(runs["arm"], runs["run"], strict=True))


def _std(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _lr(lr: float | None, top: float) -> str:
    return f"{lr:.2g}" if lr is not None else f"> {top:g}"


register(Finding("qk_norm", CLAIM, SOURCE, judge, draw, minutes=11))
