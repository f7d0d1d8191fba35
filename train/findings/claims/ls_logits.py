"""Long-short attention against softmax: how large attention logits become, and which LRs are borne."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from train.findings.arms import arms
from train.findings.base import Finding, register
from train.findings.logit_checks import bears, no_explosion, slower_logits
from train.findings.pairs import probes_against_lr
from train.results.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = "ls_logits"
CLAIM = (
    "With heads that see the last tokens alone, and one that sees all, attention logits grow less and training is more "
    "stable."
)
SOURCE = "Hajra 2025 (LS-attention, arXiv 2505.15548), abstract"
ARMS = SOFTMAX, LS = ("softmax", "LS-attention")


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = arms(NAME, runs, ARMS)
    checks = [
        slower_logits(sweep, metrics, SOFTMAX, LS),
        no_explosion(sweep, metrics, SOFTMAX, LS),
        bears(sweep, SOFTMAX, LS),
    ]
    notes = ["The paper has one head of twelve over all tokens, these models one of two"]
    return Verdict(NAME, checks, [*notes, *sweep.notes()])


def largest_logit(rows: pd.DataFrame) -> float:
    """Of the whole run."""
    return float(rows["attention/logit_max"].max()) if "attention/logit_max" in rows else float("nan")


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    probes = {"max attention logit of the run": largest_logit}
    return {"loss_and_logits_against_lr": probes_against_lr(arms(NAME, runs, ARMS), metrics, probes)}


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=7, group="rules"))
