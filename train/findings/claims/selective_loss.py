"""Selective attention, which has no parameters of its own, against softmax at the same size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from train.cli.format import size_label
from train.findings.arm_figures import arms_by_size
from train.findings.arms import Arms, arms
from train.findings.base import Finding, register
from train.findings.null_claims import noise_note
from train.findings.pairs import Pairs, best_losses, pairs
from train.findings.trends import all_of
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = "selective_loss"
CLAIM = "Selective attention lowers the loss of models of every size, without parameters of its own."
SOURCE = "Leviathan et al. 2024 (Selective attention, arXiv 2410.02703), abstract"
ARMS = SOFTMAX, SELECTIVE = ("softmax", "selective")
NO_GAIN = 0.01
"""Nats: a mean gain that is surely below this is none, as seeds of one run differ by more. As for `per_head`."""


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = arms(NAME, runs, ARMS)
    checks = [lower(pairs(sweep, metrics, SOFTMAX, SELECTIVE, "validation/loss")), lower_best(sweep)]
    return Verdict(NAME, checks, [*noise_note(sweep), *sweep.notes()])


def lower(found: Pairs) -> Check:
    """Passes when, over pairs of one size, LR and seed that are not degraded, the mean loss is lower by two errors;
    fails when the gain is below NO_GAIN by two."""
    change = found.change(log=False)
    passed = None
    if change and not found.gaps:
        passed = True if change.below(0) else False if change.above(-NO_GAIN) else None
    return Check(
        claim="Loss is lower with selective attention at the same LR",
        passed=passed,
        numbers={"change": change and change.numbers(), "no_gain": NO_GAIN, **found.numbers()},
        text=f"{found}" + (f": {change} nats" if change else ""),
    )


def lower_best(sweep: Arms) -> Check:
    """Passes when at every size the best loss over the LR grid is lower by two standard errors; fails when at some size
    the gain is below NO_GAIN by two."""
    by_n, gaps = best_losses(sweep, SOFTMAX, SELECTIVE), sweep.gaps(SOFTMAX, SELECTIVE)
    results = [True if v.below(0) else False if v.above(-NO_GAIN) else None for v in by_n.values()]
    parts = [f"N={size_label(n)} {value}" for n, value in by_n.items()]
    return Check(
        claim="The best loss is lower at every size",
        passed=None if gaps else all_of(results),
        numbers={"change": {n: v.numbers() for n, v in by_n.items()}, "no_gain": NO_GAIN},
        text=f"{gaps}change of the best loss at {'; '.join(parts) or '-'} nats",
    )


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    return {"loss_against_lr": arms_by_size(arms(NAME, runs, ARMS))}


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=7, group="rules"))
