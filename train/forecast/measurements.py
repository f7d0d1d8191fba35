"""Reads the inputs of a forecast: a metric's value in a run, the level at which runs broke, the target's size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from conf.axis import ConfigError, near
from train.config.choices import choices
from train.findings.probes import auc
from train.forecast.fits import Points

if TYPE_CHECKING:
    import pandas as pd

    from train.config.schema import Config

AT = 0.1
"""Share of the run at which logits are read. The paper reads them at 0.02, within warm-up. LOG.md has a comparison, in
which 0.05 and 0.1 forecast breaks best."""
LEVELS = (1e3, 1e4)
"""Critical attention logits."""
TELLS, LEAST_RUNS = 0.9, 3
"""Least area under the curve, and least runs of either kind, with which logits tell broken runs from sound ones."""
LAST = 0.1
"""Final share of the run over which gradients are averaged.

The paper averages the last 500 of 1e5 steps. That would be 20 of 4,000 steps, fewer than between two watch steps.
"""


@dataclass(frozen=True)
class Quantity:
    """Describes a metric to forecast and its critical levels."""

    name: str
    column: str
    label: str
    levels: tuple[float, ...]
    rises: bool
    """Whether a run is in trouble above a level rather than below it."""
    at: float | None
    """Share of the run at which it is read; None for a mean over the last part."""

    @property
    def when(self) -> str:
        """Says where in the run it is read."""
        return f"mean over the last {LAST:.0%} of the run" if self.at is None else f"at {self.at:.3g} of the run"

    def with_level(self, level: float) -> Quantity:
        return replace(self, levels=tuple(sorted({*self.levels, level})))


def logits(at: float = AT) -> Quantity:
    """Returns the largest attention logit of block 0, read at a share `at` of the run (Figure 9)."""
    return Quantity("logits", "attention/block0/logit_max", "max attention logit, block 0", LEVELS, True, at)


def gradient() -> Quantity:
    """Returns the RMS of the clipped gradient of block 0's first MLP layer over epsilon (Figure 11)."""
    label = "gradient RMS / ε, block 0's mlp.up"
    return Quantity("gradient", "adam/block0/mlp.up/gradient_over_eps", label, (1.0,), False, None)


def read(quantity: Quantity, rows: pd.DataFrame, steps: int) -> float:
    """Returns a run's value, at the watch step nearest to the quantity's share of its steps or as a final mean.

    The value is NaN if the run ended earlier or never recorded the metric.
    """
    if quantity.column not in rows:
        return math.nan
    seen = rows[rows[quantity.column].notna() & (rows["step"] >= 0)]
    if seen.empty:
        return math.nan
    if quantity.at is None:
        last = seen[seen["step"] >= (1 - LAST) * steps]
        return float(last[quantity.column].mean()) if len(last) else math.nan
    wanted = quantity.at * (steps - 1)
    nearest = seen.iloc[int(np.argmin(np.abs(seen["step"].to_numpy() - wanted)))]
    gaps = np.diff(seen["step"].to_numpy())
    reached = abs(nearest["step"] - wanted) <= max(gaps, default=1)
    return float(nearest[quantity.column]) if reached else math.nan


def count(config: Config, model: str) -> int:
    """Returns N of this config's architecture at another size, without allocating memory."""
    import torch

    from models.gpt import GPT
    from train.config.compose import compose

    size = compose([f"model={model}"]).model
    with torch.device("meta"):
        return GPT(replace(config, model=size), vocab_size=8, context=8).parameter_count()


def breaking_level(runs: pd.DataFrame, name: str) -> float | None:
    """Returns the level that best separates broken runs from trained ones, with the fewest on its wrong side.

    The level is the geometric mean of two neighbouring values. Of several equally good splits it takes the middle one.
    It returns None if no run broke or all did. The paper derives its level of 1e4 from Figure 9 in this way.
    """
    known = readable(runs, name).sort_values(name)
    value, broken = np.log10(known[name].to_numpy(dtype=float)), known["broken"].to_numpy(dtype=bool)
    if broken.all() or not broken.any():
        return None
    # wrong[i - 1] counts the errors of a level with i runs below it.
    wrong = np.array([broken[:i].sum() + (~broken[i:]).sum() for i in range(1, len(value))])
    best = np.flatnonzero(wrong == wrong.min())
    i = int(best[len(best) // 2])
    return float(10 ** ((value[i] + value[i + 1]) / 2))


def told_apart(runs: pd.DataFrame, name: str) -> float | None:
    """Returns the breaking level of a quantity that rises; None if it doesn't tell broken from sound runs."""
    known = readable(runs, name)
    bad, good = (known[name][known["broken"] == broken].tolist() for broken in (True, False))
    area = auc(bad, good) if min(len(bad), len(good)) >= LEAST_RUNS else None
    return breaking_level(runs, name) if area is not None and area >= TELLS else None


def readable(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """Returns the runs with a finite positive value in this column."""
    value = runs[name].to_numpy(dtype=float)
    return runs[np.isfinite(value) & (value > 0)]


def points(runs: pd.DataFrame, name: str) -> Points:
    """Returns log10 of size, LR and the column `name` of readable runs."""
    return Points(*(np.log10(runs[column].to_numpy(dtype=float)) for column in ("size", "optimizer.lr", name)))


def parameters_of(config: Config, target: str) -> float:
    """Returns N of a model of conf/model, built with this config, or of a number such as 1.8M or 2e9.

    Raises ConfigError if the target is neither.
    """
    if target in choices()["model"]:
        return float(count(config, target))
    try:
        scale = {"k": 1e3, "M": 1e6, "B": 1e9}.get(target[-1:], 1.0)
        n = float(target.rstrip("kMB")) * scale
    except ValueError:
        n = math.nan
    if not (math.isfinite(n) and n > 0):
        raise ConfigError(
            f"--target {target} is neither a model nor a size such as 1.8M: {near(target, choices()['model'])}"
        )
    return n
