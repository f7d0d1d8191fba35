"""Softpick against softmax: sinks, outliers of the residual stream and loss, run by run on the same batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from train.findings import Finding, Verdict, register
from train.findings.shared.arms import Arms, arms
from train.findings.shared.measures import TOLERANCE
from train.findings.shared.pairs import (
    NO_OUTLIERS,
    NOT_MASSIVE,
    average,
    fewer_sinks,
    largest,
    lowered,
    no_worse,
    pairs,
    probes_against_lr,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = "softpick_sinks"
CLAIM = "With softpick in place of softmax there are no attention sinks and no massive activations, at the same loss."
SOURCE = "Zuhri et al. 2025 (Softpick, arXiv 2504.20966), abstract"
ARMS = SOFTMAX, SOFTPICK = ("softmax", "softpick")
NO_SINKS = 0.02
"""Share of softmax's sink rate up to which softpick's counts as the paper's 0 %. Set before any run was seen."""
SINK, KURTOSIS, MASSIVE = average("attention/sink_rate"), largest("residual/kurtosis"), largest("residual/massive_max")


def pair(runs: pd.DataFrame) -> Arms:
    return arms(NAME, runs, ARMS)


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    """Sinks, kurtosis and massive activations over runs that are not degraded; loss at each arm's best LR."""
    sweep = pair(runs)
    sinks, kurtosis, massive = (
        pairs(sweep, metrics, SOFTMAX, SOFTPICK, of, healthy=True) for of in (SINK, KURTOSIS, MASSIVE)
    )
    checks = [
        fewer_sinks("Softpick's sink rate is 0 where softmax has sinks", sinks, NO_SINKS),
        lowered("The kurtosis of the residual stream is lower with softpick", kurtosis, least=NO_OUTLIERS),
        lowered("The largest activation over the median one is smaller with softpick", massive, least=NOT_MASSIVE),
        no_worse("Softpick's best loss is as good", sweep, SOFTMAX, SOFTPICK, TOLERANCE),
    ]
    scale = "Sinks and massive activations take long training: at this length softmax may not have them yet"
    return Verdict(NAME, checks, [scale, *sweep.notes()])


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    probes = {"sink rate": SINK, "kurtosis, largest of blocks": KURTOSIS, "largest / median activation": MASSIVE}
    return {"sinks_and_outliers": probes_against_lr(pair(runs), metrics, probes, linear=["sink rate"])}


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=4, group="rules"))
