"""AdamW's epsilon against the gradients: arms that differ in epsilon, placed by the RMS of the gradients it meets.

The paper shows it once, at 4.8B parameters and LR 0.3, where gradients sink to the default epsilon of 1e-8. Gradients
of small models don't, so epsilon is raised to them instead: what counts is their ratio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from train.findings.arms import by_value
from train.findings.places import placer
from train.findings.probes import window

if TYPE_CHECKING:
    import pandas as pd

GRADIENT = "adam/block0/mlp.up/gradient_over_eps"
"""Where the paper looks: the first MLP layer of the first block. RMS after clipping, which is what epsilon meets."""
NEAR = 10.0
"""An epsilon stands for the paper's 1e-8 when it is within this factor of the gradients' RMS."""
FAR = 30.0
"""It stands for 1e-6, 100 times the gradients, from this factor on."""
SMALLEST, AT_GRADIENTS, ABOVE = "smallest", "at the gradients", "far above them"


@placer("by_epsilon", (SMALLEST, AT_GRADIENTS, ABOVE))
def by_epsilon(finding: str, runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Names the arms at the largest size and LR: the smallest epsilon, that nearest to its gradients, and the largest.

    None is named `at the gradients` where none is within NEAR of them, or the smallest is not NEAR below; none `far
    above them` where none is FAR above. Runs that haven't started are placed by their order.
    """
    names = by_value(finding, runs, "optimizer.eps")
    kept = runs[(runs["size"] == runs["size"].max())]
    kept = kept[kept["optimizer.lr"] == kept["optimizer.lr"].max()]
    eps = {arm: float(kept.loc[kept["arm"] == arm, "optimizer.eps"].iloc[0]) for arm in names}
    first, *others = names
    ended = kept[kept["ended"] & (kept["arm"] == first)]
    ratios = [window(metrics[run], GRADIENT, 0.75, 1.0) for run in ended["run"]]
    gradient = float(np.mean(ratios)) * eps[first] if ratios else math.nan
    placed = {first: SMALLEST}
    if not len(ended):
        placed |= {others[0]: AT_GRADIENTS, others[-1]: ABOVE}
    elif gradient > NEAR * eps[first]:
        near = min(others, key=lambda arm: abs(math.log(eps[arm] / gradient)))
        placed |= {near: AT_GRADIENTS} if max(eps[near] / gradient, gradient / eps[near]) <= NEAR else {}
        placed |= {others[-1]: ABOVE} if eps[others[-1]] >= FAR * gradient else {}
    return kept.assign(arm=kept["arm"].map(placed))
