"""What lets a head do nothing without a sink: clipped softmax and gates, against softmax, run by run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from train.findings.arms import Arms, arms
from train.findings.base import Finding, register
from train.findings.pairs import pairs
from train.findings.sink_checks import LONG_TRAINING, SINK, fewer_sinks, less_kurtosis, less_massive, sinks_and_outliers
from train.results.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = "outliers"
CLAIM = (
    "Clipped softmax and gated attention reduce the outliers of activations; gates behind the attention also remove "
    "its sinks and massive activations."
)
SOURCE = (
    "Bondarenko et al. 2023 (Quantizable Transformers, arXiv 2306.12929), abstract; Qiu et al. 2025 (Gated Attention "
    "for Large Language Models, arXiv 2505.06708), abstract"
)
ARMS = SOFTMAX, CLIPPED, QUALCOMM, HEADWISE, ELEMENTWISE = (
    "softmax", "clipped softmax", "gate of a head's slice", "headwise gate", "elementwise gate",
)  # fmt: skip
HALF = 0.5
"""Share of softmax's sink rate that may be left: far more than the paper's tenth. Set before any run was seen."""


def all_arms(runs: pd.DataFrame) -> Arms:
    return arms(NAME, runs, ARMS)


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    """Kurtosis and largest activation where Bondarenko et al. measure them, sinks and largest activation where Qiu et
    al. do; over runs that are not degraded."""
    sweep = all_arms(runs)
    checks = [less_kurtosis(sweep, metrics, SOFTMAX, arm, _the(arm)) for arm in (CLIPPED, QUALCOMM)]
    for arm in (HEADWISE, ELEMENTWISE):
        found = pairs(sweep, metrics, SOFTMAX, arm, SINK)
        checks.append(fewer_sinks(f"The sink rate is at most half with {_the(arm)}", found, HALF))
    checks += [less_massive(sweep, metrics, SOFTMAX, arm, _the(arm)) for arm in ARMS[1:]]
    return Verdict(NAME, checks, [LONG_TRAINING, *sweep.notes()])


def _the(arm: str) -> str:
    return arm if arm == CLIPPED else f"the {arm}"


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    return {"sinks_and_outliers": sinks_and_outliers(all_arms(runs), metrics)}


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=9, group="rules"))
