"""Reads the inputs of a forecast: a metric's value in every run of a sweep, and the size of the target model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conf.axis import ConfigError, near
from train.config.choices import choices
from train.forecast.fits import Points
from train.results.arms import varying
from train.results.sensitivity import lr_sensitivity
from train.results.sweep import SweepResults

if TYPE_CHECKING:
    import pandas as pd

    from train.config.schema import Config

ARM = "qk_norm.name"
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
    when: str

    def with_level(self, level: float) -> Quantity:
        return replace(self, levels=tuple(sorted({*self.levels, level})))


def logits(at: float, levels: Sequence[float]) -> Quantity:
    """Returns the largest attention logit of block 0, read at a share `at` of the run (Figure 9)."""
    return Quantity(
        "logits", "attention/block0/logit_max", "max attention logit, block 0", tuple(levels), True,
        f"at {at:.3g} of the run",
    )  # fmt: skip


def gradient(column: str = "adam/block0/mlp.up/gradient_over_eps") -> Quantity:
    """Returns the RMS of the clipped gradient of block 0's first MLP layer over epsilon (Figure 11)."""
    return Quantity(
        "gradient", column, "gradient RMS / ε, block 0's mlp.up", (1.0,), False,
        f"mean over the last {LAST:.0%} of the run",
    )  # fmt: skip


def read(quantity: Quantity, rows: pd.DataFrame, steps: int, at: float) -> float:
    """Returns a run's value: logits at the watch step nearest to a share `at` of its steps, gradients as a final mean.

    The value is NaN if the run ended earlier or never recorded the metric.
    """
    if quantity.column not in rows:
        return math.nan
    seen = rows[rows[quantity.column].notna() & (rows["step"] >= 0)]
    if seen.empty:
        return math.nan
    if quantity.name == "gradient":
        last = seen[seen["step"] >= (1 - LAST) * steps]
        return float(last[quantity.column].mean()) if len(last) else math.nan
    wanted = at * (steps - 1)
    nearest = seen.iloc[int(np.argmin(np.abs(seen["step"].to_numpy() - wanted)))]
    gaps = np.diff(seen["step"].to_numpy())
    reached = abs(nearest["step"] - wanted) <= max(gaps, default=1)
    return float(nearest[quantity.column]) if reached else math.nan


def chosen_runs(sweep: SweepResults, where: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Returns the ended runs of one arm, which differ only in size, LR and seed, and notes on the selection.

    Without a filter on qk_norm, it selects qk_norm=none, the arm whose logits grow. Raises ConfigError if a filter
    matches nothing or the runs still differ in other settings.
    """
    runs, notes = sweep.runs, []
    for text in where:
        key, equals, value = text.partition("=")
        column = next((c for c in (key, f"{key}.name") if c in runs and equals), None)
        if column is None:
            raise ConfigError(f"--where {text} is not KEY=VALUE with a known key: {near(key, sorted(varying(runs)))}")
        known = runs[column].map(_text)
        if value not in set(known):
            raise ConfigError(f"--where {text} matches no run; {near(value, sorted(set(known.dropna())))}")
        runs = runs[known == value]
        notes.append(f"runs with {text}")
    if ARM in runs and runs[ARM].nunique() > 1 and "none" in set(runs[ARM]):
        runs = runs[runs[ARM] == "none"]
        notes.append("runs with qk_norm=none, the arm whose logits grow (--where qk_norm=... selects another)")
    if more := varying(runs):
        values = sorted({_text(v) for v in runs[more[0]].dropna()})
        raise ConfigError(f"runs differ in {', '.join(more)}: choose with --where {more[0]}={'|'.join(values)}")
    if rest := int((~runs["ended"]).sum()):
        notes.append(f"left out {rest} of {len(runs)} runs, which have not ended")
    return runs[runs["ended"]], notes


def _text(value: Any) -> Any:
    return f"{value:g}" if isinstance(value, float) else str(value)


def with_readings(sweep: SweepResults, runs: pd.DataFrame, quantities: Sequence[Quantity], at: float) -> pd.DataFrame:
    """Adds a column for each quantity, and `broken`: whether a run diverged or is degraded on its LR grid."""
    found = runs.copy()
    for quantity in quantities:
        named = zip(runs["run"], runs["steps"], strict=True)
        found[quantity.name] = [read(quantity, sweep.metrics[run], int(steps), at) for run, steps in named]
    found["broken"] = found["state"] == "diverged"
    for _, group in found.groupby(["size", "seed"]):
        lrs, losses, init = (
            group[column].tolist() for column in ("optimizer.lr", "validation/loss_final", "validation/loss_init")
        )
        curve = lr_sensitivity(lrs, losses, init)
        bad = dict(zip(curve.lrs, curve.degraded, strict=True))
        found.loc[group.index, "broken"] |= np.array([bad[lr] for lr in lrs])
    return found


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


def readable(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """Returns the runs with a finite positive value in this column."""
    value = runs[name].to_numpy(dtype=float)
    return runs[np.isfinite(value) & (value > 0)]


def points(runs: pd.DataFrame, name: str) -> Points:
    """Returns log10 of size, LR and the column `name` of readable runs."""
    return Points(*(np.log10(runs[column].to_numpy(dtype=float)) for column in ("size", "optimizer.lr", name)))


def target_size(sweep: SweepResults, runs: pd.DataFrame, target: str) -> float:
    """Returns N of a model of conf/model, built with this sweep's config, or of a number such as 1.8M or 2e9."""
    from train.config.compose import from_file  # loads torch

    return parameters_of(from_file(sweep.path / str(runs["run"].iloc[0]) / "config.yaml"), target)


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
