"""Output logits that drift away late in training: Figures 3 and 4 of Wortsman et al. 2023.

Measured by log^2 Z, Z the softmax's denominator, which z-loss acts on, and by |mean logit|, whatever its sign: it is
negative in the paper, positive in other trainings. What grows is judged at the largest LR of the sweep, in logs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.findings.arm_figures import arm_colours, arms_by_size, arms_legend
from train.findings.arms import Arms, arms, pm, pooled_std
from train.findings.base import Finding, register
from train.findings.null_claims import short
from train.findings.trends import Value, all_of
from train.results.style import panels, styled
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = (
    "Without weight decay and z-loss output logits drift away late in training at high learning rates; either of them "
    "prevents it."
)
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), section 3.1.2, Figures 3 and 4"
NEITHER, Z_LOSS, DECAY = "neither", "z-loss", "decay"
WINDOW = 0.05
"""Share of a run that each mean below is taken over."""
EARLY, HALF, END = 0.1, 0.5, 1 - WINDOW
"""Where windows begin, as shares of the run: right after warm-up, in the middle, at the end."""
GROWTH = 10.0
"""Factor from early on to the end by which log^2 Z must grow to have drifted. This and the two below were set with the
runs of LOG.md in view: two seeds with factors above 30, the same runs with z-loss below 10."""
LATE = 2.0
"""Factor by which it must grow in the second half alone."""
REMOVED = 3.0
"""Factor by which it must be smaller at the end for a drift to be prevented."""
LOG_Z2, MEAN = "output/log_z_squared", "output/logit_mean"
HEAD, GAIN = "parameter/head/rms", "parameter/final_norm/rms"


@dataclass(frozen=True)
class Drift:
    """The arms' runs at the largest LR, by size and arm, and statistics of their windows."""

    sweep: Arms
    metrics: Mapping[str, pd.DataFrame]
    lr: float

    def at(self, run: str, column: str, start: float) -> float:
        """Log of the mean |value| over a window of a run; NaN where it was not recorded, inf where it is not finite."""
        rows = self.metrics[run]
        if column not in rows:
            return math.nan
        last = rows["step"].max()
        window = rows[(rows["step"] >= start * last) & (rows["step"] <= (start + WINDOW) * last)]
        values = window[window[LOG_Z2].notna() | ~np.isfinite(window["train/loss"])][column].abs()
        mean = float(values.mean()) if len(values) else math.nan
        return math.log(mean) if 0 < mean < math.inf else mean if math.isnan(mean) else math.inf

    def runs(self, n: int, arm: str) -> list[str]:
        rows = self.sweep.ended(arm, n)
        return [str(run) for run in rows[rows["optimizer.lr"] == self.lr]["run"]]

    def change(self, n: int, arm: str, column: str, start: float) -> Value | None:
        """Mean over seeds of the log of the factor from one window to the last, with the error by the spread pooled
        over arms; a factor of 2 stands for it where no arm has two seeds. None without finite values."""
        return self._mean(n, arm, lambda run: self.at(run, column, END) - self.at(run, column, start))

    def level(self, n: int, arm: str, column: str) -> Value | None:
        """The same of the log of the last window."""
        return self._mean(n, arm, lambda run: self.at(run, column, END))

    def _mean(self, n: int, arm: str, of: Any) -> Value | None:
        values = {name: [of(run) for run in self.runs(n, name)] for name in self.sweep.names}
        if not values[arm] or not np.isfinite(values[arm]).all():
            return None
        noise = pooled_std(values.values())
        return Value(float(np.mean(values[arm])), (math.log(2) if noise is None else noise) / len(values[arm]) ** 0.5)


def trio(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Drift:
    sweep = arms("logit_divergence", runs, (NEITHER, Z_LOSS, DECAY))
    return Drift(sweep, metrics, float(sweep.runs["optimizer.lr"].max()))


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    drift = trio(runs, metrics)
    checks = [grows_late(drift), mean_moves(drift), prevents(drift, Z_LOSS), prevents(drift, DECAY), costs(drift)]
    return Verdict("logit_divergence", checks, [*mechanism(drift), *drift.sweep.notes()])


def grows_late(drift: Drift) -> Check:
    """Passes when, at every size, log^2 Z without both grows by GROWTH from early on to the end and by LATE in the
    second half, by two standard errors each; fails when it surely doesn't at some size."""
    sizes: list[dict[str, Any]] = []
    for n in drift.sweep.sizes(NEITHER):
        whole, half = (drift.change(n, NEITHER, LOG_Z2, start) for start in (EARLY, HALF))
        level = drift.level(n, NEITHER, LOG_Z2)
        if whole and half and level:
            sizes.append(
                {"N": n, "factor": math.exp(whole.value), "log_error": whole.error, "late_factor": math.exp(half.value),
                 "late_log_error": half.error, "end": math.exp(level.value), "text": whole.factor(),
                 "grows": all_of([whole.above(math.log(GROWTH)), half.above(math.log(LATE))])}
            )  # fmt: skip
    gaps = drift.sweep.gaps(NEITHER)
    parts = [f"N={size_label(s['N'])} {s['text']} to {short(s['end'])}, in the second half {s['late_factor']:.3g}x"
             for s in sizes]  # fmt: skip
    return Check(
        claim=f"Without both, log^2 Z grows at LR {drift.lr:g}, most of it late",
        passed=None if gaps else all_of(s["grows"] for s in sizes),
        numbers={"sizes": sizes, "lr": drift.lr, "needed": GROWTH, "needed_late": LATE},
        text=gaps + "; ".join(parts),
    )


def mean_moves(drift: Drift) -> Check:
    """Passes when, at every size, |mean logit| without both grows by LATE from early on to the end, by two standard
    errors: the quantity of Figure 4. It is a mean over the vocabulary and over tokens, which may drift in opposite
    directions."""
    sizes: list[dict[str, Any]] = []
    for n in drift.sweep.sizes(NEITHER):
        growth, level = drift.change(n, NEITHER, MEAN, EARLY), drift.level(n, NEITHER, MEAN)
        if growth and level:
            others = {arm: drift.level(n, arm, MEAN) for arm in (Z_LOSS, DECAY)}
            sizes.append(
                {"N": n, "factor": math.exp(growth.value), "log_error": growth.error, "end": math.exp(level.value),
                 "text": growth.factor(),
                 "end_of_others": {k: math.exp(v.value) if v else None for k, v in others.items()},
                 "grows": growth.above(math.log(LATE))}
            )  # fmt: skip
    gaps = drift.sweep.gaps(NEITHER)
    parts = [
        f"N={size_label(s['N'])} {s['text']} to {s['end']:.3g}"
        + "".join(f", {arm} {short(end)}" for arm, end in s["end_of_others"].items())
        for s in sizes
    ]
    return Check(
        claim=f"Without both, |mean logit| grows at LR {drift.lr:g}",
        passed=None if gaps else all_of(s["grows"] for s in sizes),
        numbers={"sizes": sizes, "needed": LATE},
        text=gaps + "; ".join(parts),
    )


def prevents(drift: Drift, arm: str) -> Check:
    """Passes when, at every size, log^2 Z at the end is smaller than without both by REMOVED, by two standard errors;
    fails when it surely is not at some size. The paper says it of weight decay only for its larger models: for it a
    failure leaves the check open."""
    sizes: list[dict[str, Any]] = []
    for n in drift.sweep.sizes(NEITHER, arm):
        a, b = drift.level(n, NEITHER, LOG_Z2), drift.level(n, arm, LOG_Z2)
        if a and b:
            ratio = a - b
            sizes.append(
                {"N": n, "without": math.exp(a.value), "with": math.exp(b.value), "factor": math.exp(ratio.value),
                 "log_error": ratio.error, "text": ratio.factor(), "smaller": ratio.above(math.log(REMOVED))}
            )  # fmt: skip
    gaps = drift.sweep.gaps(NEITHER, arm)
    parts = [f"N={size_label(s['N'])} {short(s['without'])} -> {short(s['with'])}, {s['text']} smaller" for s in sizes]
    passed = None if gaps else all_of(s["smaller"] for s in sizes)
    if arm == DECAY and passed is False:
        passed, gaps = None, "not prevented, which the paper says of larger models only: "
    return Check(
        claim=f"With {arm} alone log^2 Z stays small",
        passed=passed,
        numbers={"sizes": sizes, "needed": REMOVED},
        text=gaps + "; ".join(parts),
    )


def costs(drift: Drift) -> Check:
    """Passes when, at every size, LR sensitivity without both is above that with z-loss by what `Arms.needed` asks for.
    None for less than three LRs, which make no curve."""
    sizes: list[dict[str, Any]] = []
    curve = True
    for n, (without, with_) in drift.sweep.together(NEITHER, Z_LOSS):
        difference, needed = without.mean - with_.mean, drift.sweep.needed(without, with_)
        last = np.mean([a.losses[-1] - b.losses[-1] for a, b in zip(without.by_seed.values(), with_.by_seed.values(),
                                                                   strict=False)])  # fmt: skip
        curve &= len(without.first.lrs) > 2
        sizes.append(
            {"N": n, "without": without.mean, "with": with_.mean, "std_without": without.std, "std_with": with_.std,
             "difference": difference, "needed_difference": needed, "cost_at_largest_lr": float(last),
             "higher": difference > needed}
        )  # fmt: skip
    gaps = drift.sweep.gaps(NEITHER, Z_LOSS)
    few = "" if curve else "fewer than three LRs make no curve; "
    parts = [
        f"N={size_label(s['N'])} {pm(s['without'], s['std_without'])} without both, {pm(s['with'], s['std_with'])} "
        f"with z-loss (needed {s['needed_difference']:.3f}), loss at the largest LR {s['cost_at_largest_lr']:+.3f}"
        for s in sizes
    ]
    return Check(
        claim="LR sensitivity is higher without both than with z-loss",
        passed=all(s["higher"] for s in sizes) if sizes and curve and not gaps else None,
        numbers={"sizes": sizes},
        text=f"{gaps}{few}{'; '.join(parts)}",
    )


def mechanism(drift: Drift) -> list[str]:
    """What the growth of log Z in the second half is made of. z = W (g * h), h of RMS one: were directions to stay, log
    Z would grow as the RMS of the head W times that of the final norm's gains g; the rest is hidden states that turn
    towards what the rows of the head share."""
    found = []
    for n in drift.sweep.sizes():
        for arm in drift.sweep.names:
            square, head, gain = (drift.change(n, arm, column, HALF) for column in (LOG_Z2, HEAD, GAIN))
            if square and head and gain:
                rest = math.exp(square.value / 2 - head.value - gain.value)
                found.append(
                    f"Not judged, second half, N={size_label(n)} {arm}: log Z (RMS) x {math.exp(square.value / 2):.3g}"
                    f" = head RMS x {math.exp(head.value):.3g}, gains of the final norm x {math.exp(gain.value):.3g}, "
                    f"direction x {rest:.3g}"
                )
    return found


@styled
def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Figure 4 at the largest LR and size, with what logits are made of, a line a seed; loss against LR."""
    drift = trio(runs, metrics)
    figures = {"loss_against_lr": arms_by_size(drift.sweep)}
    n, shades = max(drift.sweep.sizes()), arm_colours(drift.sweep)
    shown = {arm: drift.runs(n, arm) for arm in drift.sweep.names}
    if not any(shown.values()):
        return figures
    figure, axes = panels(2, rows=2, width=2.9)
    columns = {
        LOG_Z2: "$\\log^2 Z$",
        MEAN: "mean output logit",
        GAIN: "RMS of the final norm's gains",
        HEAD: "RMS of the head",
    }
    for panel, (column, label) in zip(axes, columns.items(), strict=True):
        for arm, names in shown.items():
            for frame in (metrics[run] for run in names):
                if column in frame:
                    rows = frame[frame[column].notna() & (frame["step"] >= 0)]
                    middle = rows[column].rolling(max(1, len(rows) // 50), center=True, min_periods=1).median()
                    panel.plot(rows["step"], middle, color=shades[arm], linewidth=0.9)
        panel.set(xlabel="step", ylabel=label)
        if column != MEAN:
            panel.set_yscale("log")
    arms_legend(figure, shades)
    return {"output_logits_in_time": figure} | figures


register(Finding("logit_divergence", CLAIM, SOURCE, judge, draw, minutes=17, group="slow"))
