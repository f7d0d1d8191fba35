"""Softpick against softmax: sinks, outliers of the residual stream and loss, run by run on the same batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from train.findings.arms import Arms, arms
from train.findings.base import Finding, register
from train.findings.null_claims import TOLERANCE
from train.findings.pairs import no_worse, pairs
from train.findings.sink_checks import LONG_TRAINING, SINK, fewer_sinks, less_kurtosis, less_massive, sinks_and_outliers
from train.results.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = "softpick_sinks"
CLAIM = "With softpick in place of softmax there are no attention sinks and no massive activations, at the same loss."
SOURCE = "Zuhri et al. 2025 (Softpick, arXiv 2504.20966), abstract"
ARMS = SOFTMAX, SOFTPICK = ("softmax", "softpick")
NO_SINKS = 0.02
"""Share of softmax's sink rate up to which softpick's counts as the paper's 0 %. Set before any run was seen."""


def pair(runs: pd.DataFrame) -> Arms:
    return arms(NAME, runs, ARMS)


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    """Sinks, kurtosis and massive activations over runs that are not degraded; loss at each arm's best LR."""
    sweep = pair(runs)
    sinks = pairs(sweep, metrics, SOFTMAX, SOFTPICK, SINK)
    checks = [
        fewer_sinks("Softpick's sink rate is 0 where softmax has sinks", sinks, NO_SINKS),
        less_kurtosis(sweep, metrics, SOFTMAX, SOFTPICK, SOFTPICK),
        less_massive(sweep, metrics, SOFTMAX, SOFTPICK, SOFTPICK),
        no_worse("Softpick's best loss is as good", sweep, SOFTMAX, SOFTPICK, TOLERANCE),
    ]
    return Verdict(NAME, checks, [LONG_TRAINING, *sweep.notes()])


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    return {"sinks_and_outliers": sinks_and_outliers(pair(runs), metrics)}


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=4, group="rules"))
