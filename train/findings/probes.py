"""What findings on probes share: values at the end of runs over sizes and LRs, runs that degrade, and when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from train.results.sensitivity import DEGRADED

if TYPE_CHECKING:
    import pandas as pd

END = 5
"""Watched steps that make up the end of a run: with the paper's length and watch_every its final 500 steps."""
WINDOW = 21
"""Steps over which a difference of training losses is smoothed, by a running median: what breaks in warm-up does so
within some tens of steps. Never more than a twentieth of the run."""
LASTING = 0.1
"""Share of a run for which a loss must stay away to count as departed: a spike is no departure."""


def series(rows: pd.DataFrame, column: str) -> pd.Series:
    """Returns a probe by step, where it was watched and is finite; empty when the run has none."""
    import pandas as pd

    if column not in rows:
        return pd.Series(dtype=float)
    values = _by_step(rows, column)
    return values[np.isfinite(values)]


def _by_step(rows: pd.DataFrame, column: str) -> pd.Series:
    import pandas as pd

    steps, values = rows["step"].to_numpy(), rows[column].astype(float).to_numpy()
    trained = steps >= 0
    return pd.Series(values[trained], index=steps[trained])


def at_end(rows: pd.DataFrame, column: str) -> float:
    """Returns the probe's mean over the last END watched steps; NaN when the run has none."""
    return float(series(rows, column).tail(END).mean())


def window(rows: pd.DataFrame, column: str, low: float, high: float, steps: int) -> float:
    """Returns the mean magnitude of a column between two shares of the steps that a run was to have; infinite where the
    loss is not finite by then, NaN where the column was not recorded."""
    trained = rows[(rows["step"] >= 0) & (rows["step"] <= high * steps)]
    values = trained.loc[trained["step"] >= low * steps, column].abs().dropna()
    if len(values) and np.isfinite(values).all():
        return float(values.mean())
    return math.nan if np.isfinite(trained["train/loss"]).all() else math.inf


def loss_difference(rows: pd.DataFrame, reference: pd.DataFrame) -> pd.Series:
    """Returns the training loss minus that of the reference on the same batches, by step, smoothed by a running median.

    A step whose loss is not finite, or that the run didn't reach, is infinitely far.
    """
    own, other = (_by_step(frame, "train/loss") for frame in (rows, reference))
    # As a number: pandas leaves infinity out of a running median, and such a run would depart nowhere.
    gap = (own.reindex(other.index) - other).fillna(np.inf).clip(upper=1e9)
    return gap.rolling(max(1, min(WINDOW, round(len(gap) / 20))), center=True, min_periods=1).median()


def departure(gap: pd.Series) -> int | None:
    """Returns the first step from which the smoothed difference stays above DEGRADED for LASTING of the run; None for
    never."""
    length = max(1, round(LASTING * len(gap)))
    above = (gap > DEGRADED).to_numpy()
    lasting = np.convolve(above, np.ones(length))[length - 1 : len(above)] >= length
    return int(gap.index[int(np.argmax(lasting))]) if lasting.any() else None


def first_step(values: pd.Series, where: pd.Series) -> int | None:
    """Returns the first step of `values` at which `where` holds."""
    found = values.index[where.to_numpy(dtype=bool)]
    return int(found[0]) if len(found) else None


def auc(bad: Sequence[float], good: Sequence[float]) -> float | None:
    """Returns the chance that a value of `bad` is above one of `good`, ties half: the area under the ROC curve."""
    from scipy.stats import mannwhitneyu

    if not len(bad) or not len(good):
        return None
    return float(mannwhitneyu(bad, good).statistic) / (len(bad) * len(good))


def auc_error(area: float, bad: int, good: int) -> float:
    """Returns the standard error of such an area from so many values of each kind, by Hanley and McNeil 1982.

    It is that of an area drawn in by half a pair, as few values that are told apart perfectly prove no area of 1.
    """
    area = (area * bad * good + 0.5) / (bad * good + 1)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (bad - 1) * (q1 - area**2) + (good - 1) * (q2 - area**2)) / (bad * good)
    return math.sqrt(max(variance, 0.0))
