"""Length of training: Figure E.7 of Wortsman et al. 2023, half and twice the steps.

Arms differ in `steps` alone, are taken in its order and held against the middle one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from train.findings.arm_figures import arms_by_size
from train.findings.arms import Arms, arms
from train.findings.base import Finding, register
from train.findings.null_claims import by_value, noise_note, unchanged
from train.results.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = "Half or twice the number of steps doesn't change LR sensitivity meaningfully."
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), section 3.2.5, Figure E.7"


def lengths(runs: pd.DataFrame) -> Arms:
    return arms("steps", runs, by_value("steps", runs, "steps"))


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = lengths(runs)
    middle = sweep.names[(len(sweep.names) - 1) // 2]
    checks = [unchanged(sweep, middle, arm) for arm in sweep.names if arm != middle]
    low = "A short run has learnt little at the lowest LRs, which adds to its sensitivity without being an instability"
    return Verdict("steps", checks, [low, *noise_note(sweep), *sweep.notes()])


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    return {"loss_against_lr": arms_by_size(lengths(runs))}


register(Finding("steps", CLAIM, SOURCE, judge, draw, minutes=6, group="slow"))
