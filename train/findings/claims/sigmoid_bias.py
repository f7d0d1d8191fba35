"""Sigmoid attention with and without its bias of -log n, in the first tenth of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from train.findings.arms import LEAST_DIFFERENCE, Arms, arms
from train.findings.base import Finding, register
from train.findings.pairs import lowered, moved, not_above, pairs, probes_against_lr
from train.results.sensitivity import DEGRADED
from train.results.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = "sigmoid_bias"
CLAIM = (
    "Sigmoid attention is unstable early in training, as its initial outputs are large; a bias of -log n in its logits "
    "makes it as stable as softmax."
)
SOURCE = "Ramapuram et al. 2024 (Sigmoid attention, arXiv 2409.04431), abstract"
ARMS = SOFTMAX, BIAS, PLAIN = ("softmax", "sigmoid", "sigmoid, no bias")
EARLY = 0.1
"""Share of the run that is early."""


def early(rows: pd.DataFrame, column: str) -> pd.Series:
    """A column over the first tenth of a run's steps; empty where it has none."""
    trained = rows[rows["step"] >= 0]
    return trained[trained["step"] < EARLY * (trained["step"].max() + 1)].get(column, trained["step"].iloc[:0])


def early_loss(rows: pd.DataFrame) -> float:
    return float(early(rows, "train/loss").mean())


def early_gradient(rows: pd.DataFrame) -> float:
    """Mean norm of the gradient before clipping."""
    return float(early(rows, "gradient/norm").mean())


def rise(rows: pd.DataFrame) -> float:
    """Nats by which the training loss, in a running median over five batches, rises most above what it was before."""
    loss = early(rows, "train/loss").rolling(5, center=True, min_periods=1).median()
    return float((loss - loss.cummin()).max()) if len(loss) else math.nan


def trio(runs: pd.DataFrame) -> Arms:
    return arms(NAME, runs, ARMS)


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    """All runs, since what breaks early is what it is about; thresholds set before any run was seen."""
    sweep = trio(runs)
    worse, gradient, unsteady = (
        pairs(sweep, metrics, *both, of, healthy=False)
        for both, of in (((BIAS, PLAIN), early_loss), ((PLAIN, BIAS), early_gradient), ((BIAS, PLAIN), rise))
    )
    steady = pairs(sweep, metrics, SOFTMAX, BIAS, rise, healthy=False)
    checks = [
        moved("Without the bias the loss of the first tenth is higher", worse, LEAST_DIFFERENCE),
        lowered("With the bias early gradients are smaller", gradient),
        moved("Without the bias the early loss rises more above what it was", unsteady, LEAST_DIFFERENCE),
        not_above("With the bias the early loss rises no more than softmax's", steady, DEGRADED),
    ]
    length = "Without the bias initial outputs grow with the context: they are larger at the paper's lengths"
    return Verdict(NAME, checks, [length, *sweep.notes()])


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    probes = {
        "loss, first tenth (nats)": early_loss, "gradient norm, first tenth": early_gradient,
        "largest early rise (nats)": rise,
    }  # fmt: skip
    linear = ["loss, first tenth (nats)", "largest early rise (nats)"]
    return {"early_training": probes_against_lr(trio(runs), metrics, probes, linear=linear)}


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=5, group="rules"))
