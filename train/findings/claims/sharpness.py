"""How sharp attention stays on sequences longer than those of training: Scalable-Softmax against softmax.

`validation/top_weight_at_16x` is the mean over rows of the largest weight, in sequences of sixteen contexts; these runs
are those of `length`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from train.findings.arm_figures import arms_and_sizes_legend, by_arm_and_size
from train.findings.arms import Arms, arms
from train.findings.base import Finding, register
from train.findings.claims.length import last, lengths, multiples_axis
from train.findings.pairs import LOWER, Metrics, moved, over, pairs
from train.results.style import panels, styled
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = "sharpness"
CLAIM = "As sequences grow softmax's largest weights fade; those of Scalable-Softmax keep their size."
SOURCE = "Nakanishi 2025 (Scalable-Softmax, arXiv 2501.19399), abstract and Figure 1"
ARMS = SOFTMAX, SSMAX = ("softmax", "SSMax")
LONG = 16
LESS = 0.1
"""By how much less, in log or in nats, SSMax's weights must change over sixteen contexts: a tenth of the log, where
equal weights would change by log 16 = 2.8. Set before any run was seen."""


def fading(rows: pd.DataFrame) -> float:
    """Log of the largest weights at sixteen contexts over those at one."""
    return _log(last(f"top_weight_at_{LONG}x")(rows)) - _log(last("top_weight_at_1x")(rows))


def flattening(rows: pd.DataFrame) -> float:
    """Entropy at sixteen contexts less that at one, nats."""
    return last(f"entropy_at_{LONG}x")(rows) - last("entropy_at_1x")(rows)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = arms(NAME, runs, ARMS)
    less, flatter = (pairs(sweep, metrics, SOFTMAX, SSMAX, of, healthy=False) for of in (fading, flattening))
    checks = [
        fades(sweep, metrics),
        moved("SSMax's largest weights fade less", less, LESS),
        moved("SSMax's attention entropy grows less", flatter, -LESS),
    ]
    notes = ["Queries and keys turn by RoPE to angles beyond those of training too: weights change for both reasons"]
    return Verdict(NAME, checks, [*notes, *sweep.notes()])


def fades(sweep: Arms, metrics: Metrics) -> Check:
    """Passes when softmax's largest weights at sixteen contexts are below those at one by LOWER, in the geometric mean
    over runs, with two errors to spare; fails when they surely are not."""
    rows, gaps = sweep.ended(SOFTMAX), sweep.gaps(SOFTMAX)
    found = [fading(metrics[run]) for run in rows["run"]]
    mean = over(found)
    return Check(
        claim=f"Softmax's largest weights fade from one context to {LONG}",
        passed=mean.below(-math.log(LOWER)) if mean and not gaps else None,
        numbers={"log_change": mean and mean.numbers(), "needed_factor": LOWER, "runs": found},
        text=f"{gaps}{mean.factor() if mean else '-'} over {len(found)} runs",
    )


@styled
def draw_weights(sweep: Arms, metrics: Metrics) -> Figure:
    figure, axes = panels(2, width=3.2)
    for runs, colour, style in by_arm_and_size(sweep):
        rows = [metrics[run] for run in runs["run"]]
        at = lengths(rows)
        for panel, name in zip(axes, ("top_weight", "entropy"), strict=True):
            shown = [float(np.median([last(f"{name}_at_{m}x")(r) for r in rows])) for m in at]
            panel.plot(at, shown, color=colour, linestyle=style, marker="o")
    for panel, label in zip(axes, ("largest weight of a row, mean", "attention entropy (nats)"), strict=True):
        multiples_axis(panel)
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
    arms_and_sizes_legend(figure, sweep, columns=4)
    return figure


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    return {"sharpness_against_length": draw_weights(arms(NAME, runs, ARMS), metrics)}


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=4, group="rules"))
