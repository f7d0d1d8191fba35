"""Affine-scaled attention against softmax: how large attention logits become, and which LRs are borne.

The paper shows stability by loss curves and attention maps; that logits must grow less for it is our reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from train.findings.arms import arms
from train.findings.base import Finding, register
from train.findings.claims.ls_logits import largest_logit
from train.findings.logit_checks import bears, no_explosion, slower_logits
from train.findings.null_claims import TOLERANCE
from train.findings.pairs import no_worse, probes_against_lr
from train.results.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = "affine_logits"
CLAIM = "Affine-scaled attention trains more stably than softmax, with smaller attention logits and no worse a loss."
SOURCE = "Bae et al. 2026 (Affine-Scaled Attention, arXiv 2602.23057), abstract"
ARMS = SOFTMAX, AFFINE = ("softmax", "affine-scaled")


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = arms(NAME, runs, ARMS)
    checks = [
        slower_logits(sweep, metrics, SOFTMAX, AFFINE),
        no_explosion(sweep, metrics, SOFTMAX, AFFINE),
        bears(sweep, SOFTMAX, AFFINE),
        no_worse("Affine-scaled attention's best loss is no worse", sweep, SOFTMAX, AFFINE, TOLERANCE),
    ]
    reading = "The paper speaks of stability; that attention logits are what shows it is our reading"
    return Verdict(NAME, checks, [reading, *sweep.notes()])


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    probes = {"max attention logit of the run": largest_logit}
    return {"loss_and_logits_against_lr": probes_against_lr(arms(NAME, runs, ARMS), metrics, probes)}


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=7, group="rules"))
