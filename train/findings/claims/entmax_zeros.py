"""Weights that are exactly zero, by the probe `zero_weights`: entmax and sparsemax against softmax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from train.findings.arms import Arms, arms
from train.findings.base import Finding, register
from train.findings.null_claims import short
from train.findings.pairs import average, largest, moved, pairs, probes_against_lr
from train.findings.probes import labelled
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NAME = "entmax_zeros"
CLAIM = "Attention weights of entmax are exactly zero for some keys, with alpha 2 (sparsemax) for more than with 1.5."
SOURCE = (
    "Peters et al. 2019 (alpha-entmax, arXiv 1905.05702), abstract; Correia et al. 2019 (Adaptively Sparse "
    "Transformers, arXiv 1909.00015), abstract"
)
ARMS = SOFTMAX, ENTMAX, SPARSEMAX = ("softmax", "entmax 1.5", "sparsemax")
SOME = 0.01
"""Share of the visible keys that must have no weight, in every run, and by which sparsemax must have more."""
NONE = 1e-4
"""Share up to which softmax counts as dense: its weights underflow only for logits 103 below the row's largest."""
WHOLE = 1e-3
"""How far a row's sum may be from one: zeros are no sparsity where whole rows vanish."""
ZEROS, ROW_SUM = average("attention/zero_weights"), largest("attention/row_sum")


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    """Over runs that are not degraded."""
    sweep = arms(NAME, runs, ARMS)
    more = pairs(sweep, metrics, ENTMAX, SPARSEMAX, ZEROS)
    checks = [
        zeros(sweep, metrics, ENTMAX),
        zeros(sweep, metrics, SPARSEMAX),
        dense(sweep, metrics),
        moved("Sparsemax has more zeros than entmax 1.5", more, SOME),
        normalized(sweep, metrics),
    ]
    return Verdict(NAME, checks, sweep.notes())


def shares(sweep: Arms, metrics: Mapping[str, pd.DataFrame], arm: str) -> np.ndarray:
    """Of each run of the arm that is not degraded, the share of zeros; NaN without the probe."""
    rows = labelled(sweep, arm)
    rows = rows[~rows["degraded"].astype(bool) & (rows["state"] == "finished")] if len(rows) else rows
    return np.array([ZEROS(metrics[run]) for run in rows["run"]], dtype=float)


def _decided(gaps: str, found: np.ndarray, passed: bool) -> bool | None:
    return None if gaps or not len(found) or np.isnan(found).any() else passed


def _range(gaps: str, found: np.ndarray) -> str:
    return (
        f"{gaps}{short(found.min())} to {short(found.max())} over {len(found)} runs" if len(found) else f"{gaps}no run"
    )


def zeros(sweep: Arms, metrics: Mapping[str, pd.DataFrame], arm: str) -> Check:
    """Passes when in every run more than SOME of the weights of visible keys are zero, fails when in one not."""
    found, gaps = shares(sweep, metrics, arm), sweep.gaps(arm)
    return Check(
        claim=f"{arm[0].upper()}{arm[1:]} has weights that are exactly zero",
        passed=_decided(gaps, found, bool((found > SOME).all())),
        numbers={"shares": found.tolist(), "needed": SOME},
        text=_range(gaps, found),
    )


def dense(sweep: Arms, metrics: Mapping[str, pd.DataFrame]) -> Check:
    """Passes when in no run more than NONE of softmax's weights are zero: the control."""
    found, gaps = shares(sweep, metrics, SOFTMAX), sweep.gaps(SOFTMAX)
    return Check(
        claim="Softmax has none",
        passed=_decided(gaps, found, bool((found <= NONE).all())),
        numbers={"shares": found.tolist(), "allowed": NONE},
        text=_range(gaps, found),
    )


def normalized(sweep: Arms, metrics: Mapping[str, pd.DataFrame]) -> Check:
    """Passes when the rows of both sum to one in every run, within WHOLE."""
    sums: Sequence[float] = [
        ROW_SUM(metrics[run])
        for arm in (ENTMAX, SPARSEMAX)
        for run in sweep.ended(arm).query("state != 'diverged'")["run"]
    ]
    found, gaps = np.array(sums, dtype=float), sweep.gaps(ENTMAX, SPARSEMAX)
    off = float(np.abs(found - 1).max(initial=0.0))
    return Check("Their rows sum to one", _decided(gaps, found, off < WHOLE), {"largest_error": off, "allowed": WHOLE},
                 f"{gaps}sums are off by at most {off:.1e}")  # fmt: skip


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    probes = {"share of zero weights": ZEROS, "effective support (keys)": average("attention/support")}
    return {"zeros_against_lr": probes_against_lr(arms(NAME, runs, ARMS), metrics, probes, linear=list(probes))}


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=7, group="rules"))
