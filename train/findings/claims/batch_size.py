"""Batch size at constant data: Figure E.9 of Wortsman et al. 2023, twice and four times the batch in fewer steps.

Arms differ in `batch_size` and `steps`, see the same number of tokens, and are held against the smallest batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from conf.axis import ConfigError
from train.findings.arm_figures import arms_by_size
from train.findings.arms import Arms, arms
from train.findings.base import Finding, register
from train.findings.null_claims import by_value, noise_note, unchanged
from train.results.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = "Batches of two and four times the size at constant data don't change LR sensitivity meaningfully."
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), section 3.2.5, Figure E.9"


def batches(runs: pd.DataFrame) -> Arms:
    """ConfigError when arms don't differ in batch size, or see different amounts of data."""
    sweep = arms("batch_size", runs, by_value("batch_size", runs, "batch_size"))
    seen = sorted((sweep.runs["batch_size"] * sweep.runs["steps"]).dropna().unique())
    if len(seen) > 1:
        raise ConfigError(
            f"finding batch_size is about constant data, these arms see {' and '.join(f'{s:,.0f}' for s in seen)} "
            "sequences: give each steps in proportion to 1 / batch_size"
        )
    return sweep


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = batches(runs)
    smallest, *others = sweep.names
    low = "Fewer steps have learnt little at the lowest LRs, which adds to sensitivity without being an instability"
    return Verdict("batch_size", [unchanged(sweep, smallest, arm) for arm in others],
                   [low, *noise_note(sweep), *sweep.notes()])  # fmt: skip


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    return {"loss_against_lr": arms_by_size(batches(runs))}


register(Finding("batch_size", CLAIM, SOURCE, judge, draw, minutes=8, group="slow"))
