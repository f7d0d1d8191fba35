"""Attention sinks, and the outliers and massive activations of the residual stream that come with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.findings.arms import Arms
from train.findings.pairs import Metrics, Pairs, average, largest, lowered, over, pairs, probes_against_lr
from train.results.verdict import Check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SINK, KURTOSIS, MASSIVE = average("attention/sink_rate"), largest("residual/kurtosis"), largest("residual/massive_max")

SINKS = 0.1
"""Sink rate from which a model counts as having sinks: one head in ten. Set before any run was seen."""
NO_OUTLIERS = 3.0
"""Kurtosis of features up to which none of them is an outlier: a Gaussian's (Elhage et al. 2023)."""
NOT_MASSIVE = 100.0
"""Largest activation over the median one up to which none is massive: a tenth of what Sun et al. 2024 ask for. This and
NO_OUTLIERS were set when softmax's runs at the mini scale had been seen to have neither."""
LONG_TRAINING = "Sinks and outliers take long training: at this length softmax may not have them yet"


def less_kurtosis(sweep: Arms, metrics: Metrics, base: str, arm: str, the_arm: str) -> Check:
    """`lowered` where the base has features that are outliers."""
    found = pairs(sweep, metrics, base, arm, KURTOSIS)
    return lowered(f"The kurtosis of the residual stream is lower with {the_arm}", found, least=NO_OUTLIERS)


def less_massive(sweep: Arms, metrics: Metrics, base: str, arm: str, the_arm: str) -> Check:
    """`lowered` where the base has massive activations."""
    found = pairs(sweep, metrics, base, arm, MASSIVE)
    claim = f"The largest activation over the median one is smaller with {the_arm}"
    return lowered(claim, found, least=NOT_MASSIVE)


def fewer_sinks(claim: str, found: Pairs, share: float) -> Check:
    """Passes when the arm's sink rate is below this share of the base's, in the mean over pairs, with two errors to
    spare; fails when it surely is not. Open where the base's is below SINKS: there is little to remove."""
    rate, rest = over([p["base"] for p in found.values]), found.change(log=False, share=share)
    passed = None
    if rest and rate and not found.gaps:
        passed = rest.below(0)
        passed = None if passed and rate.value < SINKS else passed
    return Check(
        claim=claim,
        passed=passed,
        numbers={"base": rate and rate.numbers(), "allowed_share": share, "least_base": SINKS, **found.numbers()},
        text=f"{found}" + (f"; mean of the base {rate.value:.2f}" if rate else ""),
    )


def sinks_and_outliers(sweep: Arms, metrics: Metrics) -> Figure:
    probes = {"sink rate": SINK, "kurtosis, largest of blocks": KURTOSIS, "largest / median activation": MASSIVE}
    return probes_against_lr(sweep, metrics, probes, linear=["sink rate"])
