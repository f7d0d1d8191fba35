"""Attention logits taken apart into norms and cosine: Figure E.1 of Wortsman et al. 2023.

For one pair logit = |q| |k| cos / sqrt(d_h). The probes give block 0's largest logit, the norms of queries and keys as
means over tokens and heads, and the mean over heads of the cosine of each head's largest pair. Their product misses the
logit by what the largest pair's norms have over the mean ones, so the parts of its growth don't add up to one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from train.findings.arms import Arms
from train.findings.probes import series
from train.findings.quantities import Row, measure

if TYPE_CHECKING:
    import pandas as pd

GROWN = 10.0
"""Factor by which a run's largest logit must have grown for its growth to be taken apart: logits of 5 at the start are
then above 50. Learning to attend at all brings a few times less than that, and that may well be the cosine."""
PARTS = ("logit_max", "q_norm", "k_norm", "cosine_of_max_pair")


def parts_of(rows: pd.DataFrame) -> pd.DataFrame | None:
    """Returns logarithms of block 0's largest logit and of what it is made of, by step; None where a run lacks any of
    them, or where its logits have not grown."""
    import pandas as pd

    found = pd.DataFrame({name: series(rows, f"attention/block0/{name}") for name in PARTS}).dropna()
    found = found[(found > 0).all(axis=1)]
    if len(found) < 3:
        return None
    logs = np.log(found)
    grown = logs["logit_max"].max() - logs["logit_max"].iloc[0]
    if grown < math.log(GROWN):
        return None
    return pd.DataFrame(
        {"logit": logs["logit_max"], "norms": logs["q_norm"] + logs["k_norm"], "cosine": logs["cosine_of_max_pair"]}
    )


def _share(row: Row, sweep: Arms, part: str) -> float:
    """Returns what share of the growth of the logit, in log up to the step of the largest, a part of it makes up."""
    logs = parts_of(sweep.metrics[row["run"]])
    if logs is None:
        return math.nan
    growth = logs.loc[logs["logit"].idxmax()] - logs.iloc[0]
    return float(growth[part] / growth["logit"])


@measure("norms_share", "share of the norms in the growth of the logit")
def norms_share(row: Row, sweep: Arms) -> float:
    return _share(row, sweep, "norms")


@measure("cosine_share", "share of the cosine in the growth of the logit")
def cosine_share(row: Row, sweep: Arms) -> float:
    return _share(row, sweep, "cosine")


@measure("norms_correlation", "correlation of the logit with the norms in time")
def norms_correlation(row: Row, sweep: Arms) -> float:
    """Returns the correlation, over a run's watched steps, between log logit and log |q| |k|."""
    logs = parts_of(sweep.metrics[row["run"]])
    return math.nan if logs is None else float(np.corrcoef(logs["logit"], logs["norms"])[0, 1])
