"""The LR of each tensor times the RMS of its weights, as in Adafactor: Figure E.14 of Wortsman et al. 2023.

LR sensitivity isn't judged: the LR of the second arm means something else (Appendix B).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from train.findings.arms import arms
from train.findings.base import Finding, register
from train.findings.trends import in_order, optima_over_n, steadier_optimum, steady_optimum
from train.results.figures import against_size, loss_against_lr
from train.results.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = "With the learning rate of each tensor times the RMS of its weights, the optimal one doesn't move with N."
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), Figure E.14"
ARMS = STANDARD, TIMES_RMS = ("standard", "times parameter RMS")


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = arms("parameter_rms", runs, ARMS)
    checks = [
        steadier_optimum("Relative to the weights, the optimal LR moves less with N", sweep, STANDARD, TIMES_RMS),
        steady_optimum("Relative to the weights, the optimal LR stays put", sweep, TIMES_RMS),
    ]
    not_judged = "Not judged: LR sensitivity, as the LR of the two arms is not the same quantity"
    return Verdict("parameter_rms", checks, [not_judged, *sweep.notes()])


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Figure E.14: loss against LR for both, and the optimal LR against N."""
    sweep = arms("parameter_rms", runs, ARMS)
    return {
        "loss_against_lr": loss_against_lr(in_order(sweep)),
        "optimal_lr": against_size({"optimal LR": optima_over_n(sweep, *ARMS)}),
    }


register(Finding("parameter_rms", CLAIM, SOURCE, judge, draw, minutes=9))
