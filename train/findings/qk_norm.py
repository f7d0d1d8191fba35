"""qk-layernorm and attention-logit growth: Figures 1 and 2 of Wortsman et al. 2023, judged on a ladder of sizes.

The sweep crosses model size, qk_norm (none and one other) and learning rate, at one or more seeds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conf.axis import ConfigError
from train.figures import arms_against_lr, arms_in_time, sensitivity_against_size, size_label
from train.findings import Check, Finding, Verdict, register
from train.sensitivity import DEGRADED, OverSeeds, of_runs

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
LEAST_DIFFERENCE = 0.02
"""Nats by which two LR sensitivities must differ at the least; as much as two seeds of one curve may."""
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


@dataclass(frozen=True)
class Ladder:
    """The sweep, sorted into curves over the LR grid."""

    runs: pd.DataFrame
    """Ended runs of complete curves, with `arm`."""
    sizes: list[int]
    arms: tuple[str, str]
    """qk_norm of the runs without and with it."""
    lrs: list[float]
    curves: Mapping[tuple[int, str], OverSeeds]
    """Complete curves only."""
    missing: Mapping[str, list[str]]
    """By arm, the runs that the grid needs and that have not ended."""

    def gaps(self, *arms: str) -> str:
        names = [name for arm in arms for name in self.missing[arm]]
        return f"{len(names)} run{'s' if len(names) > 1 else ''} missing; so far: " if names else ""

    def pairs(self) -> list[tuple[int, OverSeeds, OverSeeds]]:
        """Sizes for which both arms are complete: N, without, with."""
        both = [n for n in self.sizes if all((n, arm) in self.curves for arm in self.arms)]
        return [(n, self.curves[n, self.arms[0]], self.curves[n, self.arms[1]]) for n in both]


def ladder(runs: pd.DataFrame) -> Ladder:
    """ConfigError when the sweep is not one over size, qk_norm, LR and seed."""
    known = runs.dropna(subset=["qk_norm.name", "optimizer.lr", "seed", "size"])
    names = sorted(known["qk_norm.name"].unique())
    others = [name for name in names if name != NONE]
    if NONE not in names or not others:
        raise ConfigError(f"finding qk_norm compares qk_norm=none with another, this sweep has {', '.join(names)}")
    arms = (NONE, "layernorm" if "layernorm" in others else others[0])
    known = known[known["qk_norm.name"].isin(arms)].assign(arm=lambda f: f["qk_norm.name"])
    if known.duplicated(["size", "arm", "optimizer.lr", "seed"]).any():
        raise ConfigError(
            "finding qk_norm needs runs that differ in size, qk_norm, LR and seed only: this sweep varies more"
        )
    lrs = sorted(known["optimizer.lr"].unique().tolist())
    sizes = sorted(known["size"].astype(int).unique().tolist())
    seeds = sorted(known["seed"].astype(int).unique().tolist())
    states = {
        (int(r["size"]), r["arm"], r["optimizer.lr"], int(r["seed"])): "" if r["ended"] else r["state"]
        for r in known.to_dict("records")
    }
    missing: dict[str, list[str]] = {arm: [] for arm in arms}
    curves = {}
    for n, arm in itertools.product(sizes, arms):
        cells = {(n, arm, lr, seed) for lr, seed in itertools.product(lrs, seeds)}
        open_ = {cell: states.get(cell, "not in the sweep") for cell in sorted(cells)}
        absent = [f"N={size_label(n)} qk_norm={arm} lr={c[2]:g} seed={c[3]} ({s})" for c, s in open_.items() if s]
        missing[arm] += absent
        if not absent:
            curves[n, arm] = of_runs(known[(known["size"] == n) & (known["arm"] == arm)])
    complete = known[[key in curves for key in zip(known["size"].astype(int), known["arm"], strict=True)]]
    return Ladder(complete, sizes, arms, lrs, curves, missing)


def judge(runs: pd.DataFrame) -> Verdict:
    sweep = ladder(runs)
    checks = [lower_sensitivity(sweep), falling_critical_lr(sweep), large_logits(sweep), same_below(sweep)]
    return Verdict("qk_norm", checks, notes(sweep, runs))


def lower_sensitivity(sweep: Ladder) -> Check:
    """Passes when, at every size, LR sensitivity with qk-norm is lower by LEAST_DIFFERENCE and, with several seeds,
    by two standard errors of the difference of the means."""
    sizes: list[dict[str, Any]] = []
    for n, without, with_ in sweep.pairs():
        error = math.sqrt(sum((s.std or 0) ** 2 / len(s.by_seed) for s in (without, with_)))
        difference, needed = without.mean - with_.mean, max(LEAST_DIFFERENCE, 2 * error)
        sizes.append(
            {"N": n, "without": without.mean, "with": with_.mean, "std_without": without.std, "std_with": with_.std,
             "seeds": len(without.by_seed), "ratio": without.mean / with_.mean if with_.mean else None,
             "difference": difference, "needed_difference": needed, "lower": difference > needed}
        )  # fmt: skip
    gaps = sweep.gaps(*sweep.arms)
    parts = [
        f"N={size_label(s['N'])} {_pm(s['without'], s['std_without'])} -> {_pm(s['with'], s['std_with'])} nats"
        for s in sizes
    ]
    return Check(
        claim="LR sensitivity is lower with qk-norm at every size",
        passed=None if gaps or not sizes else all(s["lower"] for s in sizes),
        numbers={"sizes": sizes},
        text=f"{gaps}lower at {sum(s['lower'] for s in sizes)} of {len(sizes)} sizes: {'; '.join(parts)}",
    )


def falling_critical_lr(sweep: Ladder) -> Check:
    """Passes when the critical LR without qk-norm (median over seeds) never rises by more than a factor RISE from one
    size to the next and falls by at least FALL over the ladder.

    It is where the loss crosses best + DEGRADED between two grid points, so that a fall finer than the grid is seen;
    a size that never degrades counts as one whose critical LR lies beyond the grid. None at all: not decided.
    """
    without, top = sweep.arms[0], sweep.lrs[-1]
    sizes: list[dict[str, Any]] = []
    for n in sweep.sizes:
        if (n, without) not in sweep.curves:
            continue
        curve, other = sweep.curves[n, without], sweep.curves.get((n, sweep.arms[1]))
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


def large_logits(sweep: Ladder) -> Check:
    """Passes when, without qk-norm, some run's largest attention logit passes LARGE_LOGIT, every such run is degraded,
    and at least SHARE of the degraded runs are such runs.

    Logits that large are then enough for the break and its usual companion, as in Figures 2, 9 and 10. Not all degraded
    runs need them: too large an LR also hurts in other ways, as the runs with qk-norm show. None when nothing broke.
    """
    without, with_ = (_table(sweep, arm) for arm in sweep.arms)
    gaps = sweep.gaps(sweep.arms[0])
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


def _table(sweep: Ladder, arm: str) -> dict[str, Any]:
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


def same_below(sweep: Ladder) -> Check:
    """Passes when the arms' final losses differ by less than AGREE at every LR that is at least CLEARLY_BELOW below the
    critical LR without qk-norm, seed by seed (Appendix B: the curves coincide there). None without such an LR."""
    rows: list[dict[str, Any]] = []
    for n, without, with_ in sweep.pairs():
        for seed, a in without.by_seed.items():
            for lr, loss, other in zip(a.lrs, a.losses, with_.by_seed[seed].losses, strict=True):
                if a.critical_lr is None or lr < a.critical_lr:
                    far = a.critical_lr is None or lr * CLEARLY_BELOW <= a.critical_lr
                    rows.append({"N": n, "lr": lr, "seed": seed, "difference": abs(loss - other), "clear": far})
    clear = [row for row in rows if row["clear"]]
    worst = max(clear, key=lambda row: row["difference"], default=None)
    gaps = sweep.gaps(*sweep.arms)
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


def notes(sweep: Ladder, runs: pd.DataFrame) -> list[str]:
    """The LR grid and how it differs from the paper's, length, seeds, and what was not judged."""
    grid = ", ".join(f"{lr:g}" for lr in sweep.lrs)
    paper = f"{len(PAPER_LRS)} from {PAPER_LRS[0]:g} to {PAPER_LRS[-1]:g}"
    same = len(sweep.lrs) == len(PAPER_LRS) and np.allclose(sweep.lrs, PAPER_LRS)
    found = [f"LR grid: {grid}" + (", the paper's" if same else f"; the paper's is {paper}")]
    if "steps" in runs:
        lengths = ", ".join(f"{s:,.0f}" for s in sorted(runs["steps"].dropna().unique()))
        found.append(f"{lengths} steps a run; the paper's have 100,000")
    seeds = {len(curve.by_seed) for curve in sweep.curves.values()}
    if seeds:
        spread = "no spread is known" if seeds == {1} else "+- is the sample standard deviation"
        found.append(f"Seeds a curve: {max(seeds)}; {spread}")
    for (n, arm), curve in sweep.curves.items():
        if curve.first.best_lr in (sweep.lrs[0], sweep.lrs[-1]):
            found.append(
                f"N={size_label(n)} qk_norm={arm}: the best LR, {curve.first.best_lr:g}, is at the grid's edge"
            )
    if sweep.arms[1] != "layernorm":
        found.append(f"The arm with qk-norm is qk_norm={sweep.arms[1]}; the paper's is layernorm")
    for arm in sweep.arms:
        values = ", ".join(f"{sweep.curves[n, arm].mean:.3f}" for n in sweep.sizes if (n, arm) in sweep.curves)
        if values:
            found.append(f"Not judged, LR sensitivity from small to large N with qk_norm={arm}: {values}")
    missing = [name for arm in sweep.arms for name in sweep.missing[arm]]
    return found + ([f"Missing: {'; '.join(missing)}"] if missing else [])


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Figure 1's two halves with the probes behind them, and Figure 2's curves at the smallest and largest size."""
    sweep = ladder(runs)
    ended = runs[runs["ended"] & runs["qk_norm.name"].isin(sweep.arms)].assign(arm=lambda f: f["qk_norm.name"])
    lines = {sweep.arms[1]: "with qk-norm", sweep.arms[0]: "without"}
    figures = {"loss_and_logits_against_lr": arms_against_lr(ended, lines)}
    if sweep.curves:
        figures["lr_sensitivity"] = sensitivity_against_size(sweep.curves, lines)
    shown = {n: run for n in (sweep.sizes[0], sweep.sizes[-1]) if (run := _broken(sweep, n)) is not None}
    rows = {(n, arm): metrics[run] for n, (_, named) in shown.items() for arm, run in named.items()}
    rows = {key: frame for key, frame in rows.items() if not frame.empty}
    if rows:
        figures["loss_and_logits_in_time"] = arms_in_time(rows, {n: lr for n, (lr, _) in shown.items()}, lines)
    return figures


def _broken(sweep: Ladder, n: int) -> tuple[float, dict[str, str]] | None:
    """The smallest LR at which the logits without qk-norm are large (else the largest LR), and the run of each arm."""
    rows = sweep.runs[sweep.runs["size"] == n]
    rows = rows[rows["seed"] == rows["seed"].min()].sort_values("optimizer.lr")
    without = rows[rows["arm"] == sweep.arms[0]]
    if without.empty:
        return None
    large = without[without["logit_max"] > LARGE_LOGIT]
    lr = float((large if len(large) else without.tail(1))["optimizer.lr"].iloc[0])
    runs = rows[rows["optimizer.lr"] == lr]
    return lr, dict(zip(runs["arm"], runs["run"], strict=True))


def _std(values: list[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _pm(mean: float, std: float | None) -> str:
    return f"{mean:.3f}" if std is None else f"{mean:.3f} +- {std:.3f}"


def _lr(lr: float | None, top: float) -> str:
    return f"{lr:.2g}" if lr is not None else f"> {top:g}"


register(Finding("qk_norm", CLAIM, SOURCE, judge, draw))
