"""What of attention is needed: its exact form, its queries, its mixing of tokens, in all or in every other block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from train.cli.format import size_label
from train.findings.arm_figures import arms_by_size
from train.findings.arms import Arms, arms
from train.findings.base import Finding, register
from train.findings.pairs import best_losses, no_worse
from train.findings.trends import all_of, best_loss, mean
from train.results.sensitivity import DEGRADED
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = "deconstructing"
CLAIM = (
    "Mixing tokens is indispensable, the exact form of attention is not; variants that fail in all layers do well when "
    "every other layer has standard attention."
)
SOURCE = "Xue et al. 2025 (Deconstructing Attention, arXiv 2510.11602), abstract"
SOFTMAX = "softmax"
APPROXIMATE, NON_APPROXIMATE, MLP = "approximate", "non-approximate", "MLP"
ODD = {rule: f"{rule}, odd layers" for rule in (APPROXIMATE, NON_APPROXIMATE, MLP)}
ARMS = (SOFTMAX, *(arm for pair in ODD.items() for arm in pair))
RECOVERED = 0.5
"""Share of what a variant loses in all layers that it must not lose in the odd ones: as many layers have it, so that
without cooperation it would lose about half. Set before any run was seen."""


def all_arms(runs: pd.DataFrame) -> Arms:
    return arms(NAME, runs, ARMS)


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    """On the best losses over the LR grid."""
    sweep = all_arms(runs)
    checks = [
        needed(sweep),
        no_worse(f"The approximate form loses less than {DEGRADED:g} nats", sweep, SOFTMAX, APPROXIMATE, DEGRADED),
        *(recovers(sweep, rule) for rule in (NON_APPROXIMATE, MLP)),
    ]
    depth = sorted(runs["model.depth"].dropna().unique()) if "model.depth" in runs else []
    notes = [f"Models of {', '.join(f'{d:g}' for d in depth)} blocks; the paper's have 6 to 24"] if depth else []
    notes.append("Evaluation without the layers that are not standard is left out")
    return Verdict(NAME, checks, [*notes, *sweep.notes()])


def needed(sweep: Arms) -> Check:
    """Passes when at every size the best loss with MLPs in place of all attention is above softmax's by DEGRADED, with
    two standard errors to spare; fails when it surely is not at some size."""
    by_n, gaps = best_losses(sweep, SOFTMAX, MLP), sweep.gaps(SOFTMAX, MLP)
    parts = [f"N={size_label(n)} {value}" for n, value in by_n.items()]
    return Check(
        claim="Without any mixing of tokens the loss is far worse",
        passed=None if gaps else all_of(value.above(DEGRADED) for value in by_n.values()),
        numbers={"change": {n: v.numbers() for n, v in by_n.items()}, "needed": DEGRADED},
        text=f"{gaps}change of the best loss at {'; '.join(parts) or '-'} nats",
    )


def recovers(sweep: Arms, rule: str) -> Check:
    """Passes when, at every size at which the rule in all layers surely loses DEGRADED, it loses less than RECOVERED of
    that in the odd ones, by two standard errors; fails when it surely doesn't at some. Open where it fails nowhere."""
    gaps, sizes, results = sweep.gaps(SOFTMAX, rule, ODD[rule]), {}, []
    for n, curves in sweep.together(SOFTMAX, rule, ODD[rule]):
        softmax, everywhere, odd = (mean(sweep, curve, best_loss) for curve in curves)
        lost, left = everywhere - softmax, odd - softmax
        # One error of softmax is in both terms: taken as apart, which is the larger error here.
        rest = left - lost.times(RECOVERED)
        sizes[n] = {"all": lost.numbers(), "odd": left.numbers()}
        if lost.above(DEGRADED):
            results.append(rest.below(0))
    parts = [
        f"N={size_label(n)} {s['all']['value']:+.3f} in all, {s['odd']['value']:+.3f} in odd" for n, s in sizes.items()
    ]
    return Check(
        claim=f"{rule[0].upper()}{rule[1:]} fails in all layers and not in the odd ones",
        passed=None if gaps else all_of(results),
        numbers={"sizes": sizes, "needed_loss": DEGRADED, "allowed_share": RECOVERED},
        text=f"{gaps}best loss over softmax's: {'; '.join(parts) or '-'} nats",
    )


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    return {"loss_against_lr": arms_by_size(all_arms(runs))}


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=13, group="rules"))
