"""Loss on sequences longer than those of training: rules and positions that are said to extrapolate.

`eval_lengths` measures it at the end of each run. `tail` is the loss of the last context's worth of a long sequence,
`alone` that of the same tokens without what is before them: what a model gains or loses by the longer past.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from train.findings.arm_figures import arms_and_sizes_legend, by_arm_and_size
from train.findings.arms import Arms, arms
from train.findings.base import Finding, register
from train.findings.pairs import Metrics, Probe, moved, over, pairs
from train.results.style import panels, styled
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "length"
CLAIM = (
    "Forgetting attention, ALiBi and LSSAR keep their loss on sequences many times longer than those of training, "
    "where softmax with RoPE loses; Scalable-Softmax and Entropy-ABF lose less."
)
SOURCE = (
    "Lin et al. 2025 (Forgetting Transformer, arXiv 2503.02130); Press et al. 2022 (ALiBi, arXiv 2108.12409); Gao et "
    "al. 2025 (LSSAR, arXiv 2501.13428), abstract; Nakanishi 2025 (Scalable-Softmax, arXiv 2501.19399), abstract; "
    "Zhang et al. 2024 (Entropy-ABF, arXiv 2401.07004)"
)
ARMS = ROPE, ALIBI, FOX, LSSAR, SSMAX, ABF, _ = (
    "RoPE", "ALiBi", "FoX, no positions", "LSSAR", "SSMax", "Entropy-ABF", "no positions",
)  # fmt: skip
FOUR, SIXTEEN = 4, 16
"""Contexts: where FoX, ALiBi, SSMax and Entropy-ABF are held to their claims, and where LSSAR is (its abstract)."""
HOLDS = 0.02
"""Nats that the longer past may cost; a model that breaks loses tenths. Set before any run was seen."""
CONSTANT = 0.05
"""Nats by which the loss over whole sequences may rise for the abstract's "nearly constant"."""


def all_arms(runs: pd.DataFrame) -> Arms:
    return arms(NAME, runs, ARMS)


def last(column: str) -> Probe:
    """The value in a run's last row; NaN without it."""
    return lambda rows: float(rows[f"validation/{column}"].iloc[-1]) if f"validation/{column}" in rows else math.nan


def cost(multiple: int) -> Probe:
    """What the past beyond a context costs the last context of a sequence, nats; a gain is below zero."""
    tail, alone = last(f"loss_at_{multiple}x_tail"), last(f"loss_at_{multiple}x_alone")
    return lambda rows: tail(rows) - alone(rows)


def growth(multiple: int) -> Probe:
    """Loss over all tokens less that of the same tokens in sequences of one context."""
    long, short = last(f"loss_at_{multiple}x"), last("loss_at_1x")
    return lambda rows: long(rows) - short(rows)


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = all_arms(runs)
    checks = [
        loses(sweep, metrics),
        keeps(f"FoX loses nothing by a past of {FOUR} contexts", sweep, metrics, FOX, cost(FOUR), HOLDS),
        keeps(f"ALiBi loses nothing by a past of {FOUR} contexts", sweep, metrics, ALIBI, cost(FOUR), HOLDS),
        keeps(f"LSSAR's loss is nearly constant at {SIXTEEN} contexts", sweep, metrics, LSSAR, growth(SIXTEEN),
              CONSTANT),
        *(
            moved(f"With {arm} the loss at {FOUR} contexts rises less than with RoPE alone",
                  pairs(sweep, metrics, ROPE, arm, growth(FOUR), healthy=False), -HOLDS)
            for arm in (SSMAX, ABF)
        ),
    ]  # fmt: skip
    notes = [
        "Softmax without positions is drawn and not judged: what FoX would be without forgetting",
        "Entropy-ABF is made for extending a trained model; here it has its base of RoPE from the start, and its "
        "temperature beyond the context",
    ]
    return Verdict(NAME, checks, [*notes, *sweep.notes()])


def values(sweep: Arms, metrics: Metrics, arm: str, of: Probe) -> list[float]:
    """Of each ended run; infinite for one that diverged."""
    rows = sweep.ended(arm)
    return [math.inf if state == "diverged" else of(metrics[run]) for run, state in zip(rows["run"], rows["state"])]  # noqa: B905


def loses(sweep: Arms, metrics: Metrics) -> Check:
    """Passes when the past beyond a context costs softmax with RoPE more than HOLDS, in the mean over runs, with two
    errors to spare: else there is nothing to extrapolate better than. Fails when it surely doesn't."""
    found, gaps = values(sweep, metrics, ROPE, cost(FOUR)), sweep.gaps(ROPE)
    mean = over(found)
    passed = mean.above(HOLDS) if mean and not gaps else None
    text = f"{gaps}{mean or '-'} nats over {len(found)} runs"
    return Check(f"Softmax with RoPE loses by a past of {FOUR} contexts", passed, _numbers(found, HOLDS), text)


def keeps(claim: str, sweep: Arms, metrics: Metrics, arm: str, of: Probe, limit: float) -> Check:
    """Passes when the mean over runs is below `limit` nats by two errors; fails when it surely is not, or a run
    diverged."""
    found, gaps = values(sweep, metrics, arm, of), sweep.gaps(arm)
    mean = over(found)
    passed = None
    if not gaps:
        passed = False if math.inf in found else mean.below(limit) if mean else None
    return Check(claim, passed, _numbers(found, limit), f"{gaps}{mean or '-'} nats over {len(found)} runs")


def _numbers(found: Sequence[float], limit: float) -> dict[str, object]:
    return {"runs": list(found), "limit": limit}


@styled
def draw_lengths(sweep: Arms, metrics: Metrics) -> Figure:
    """What the longer past costs, and how the loss over all tokens changes, against length: medians over runs."""
    figure, axes = panels(2, width=3.2)
    for runs, colour, style in by_arm_and_size(sweep):
        rows = [metrics[run] for run in runs["run"]]
        for panel, of in zip(axes, (cost, growth), strict=True):
            found = {m: [x for x in (of(m)(r) for r in rows) if math.isfinite(x)] for m in lengths(rows)}
            shown = {m: float(np.median(x)) for m, x in found.items() if x}
            panel.plot(list(shown), list(shown.values()), color=colour, linestyle=style, marker="o")
    labels = ("cost of the longer past (nats)", "rise of the loss (nats)")
    for panel, label in zip(axes, labels, strict=True):
        panel.axhline(0, color="0.45", linestyle=":", linewidth=0.9, zorder=1)
        multiples_axis(panel)
        panel.set_yscale("symlog", linthresh=0.1)
        panel.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        panel.set_ylabel(label)
    arms_and_sizes_legend(figure, sweep, columns=5)
    return figure


def multiples_axis(panel: Axes) -> None:
    """Length over that of training, a tick at each doubling."""
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    panel.set_xlabel("length / length of training")


def lengths(rows: Sequence[pd.DataFrame]) -> list[int]:
    """Multiples of the context at which all of these runs were validated."""
    found = [
        {
            int(c.removeprefix("validation/loss_at_")[:-1])
            for c in r
            if c.startswith("validation/loss_at_") and c[-1] == "x"
        }
        for r in rows
    ]
    return sorted(set.intersection(*found)) if found else []


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    return {"loss_against_length": draw_lengths(all_arms(runs), metrics)}


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=17, group="rules"))
