"""How much the final loss depends on the learning rate: LR sensitivity, and the LRs at which training breaks.

Losses are final validation losses in nats per token, learning rates are the peaks of their schedules
(Wortsman et al. 2023, arXiv 2309.14322, section 2.2 and Appendix B).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

DEGRADED = 0.1
"""Nats above the best loss of the grid from which a run counts as degraded.

The paper's diverged runs end near the loss at initialisation. A small model whose attention breaks instead falls back
to what it can do without attention, 0.2 to 1.5 nats above its best; runs that differ in their seed only are within
a few hundredths. 0.1 lies between the two. A healthy curve passes it too where the LR is far too large, so a degraded
run is one whose LR is too large for its model, whatever the reason.
"""


@dataclass(frozen=True)
class LRSensitivity:
    """One curve of final loss against learning rate."""

    lrs: tuple[float, ...]
    """The grid, ascending."""
    losses: tuple[float, ...]
    """Final losses, at most the loss at initialisation."""
    loss_init: float
    sensitivity: float
    """Mean over the grid of (capped loss - best_loss), nats."""
    best_loss: float
    best_lr: float
    first_diverging_lr: float | None
    """Smallest LR from best_lr on that ends non-finite or at the loss at initialisation or above."""
    first_degraded_lr: float | None
    """Smallest LR above best_lr whose capped loss exceeds best_loss by more than DEGRADED; divergence is included."""
    critical_lr: float | None
    """Where the loss, linear in log LR between grid points, crosses best_loss + DEGRADED before first_degraded_lr."""

    @property
    def degraded(self) -> tuple[bool, ...]:
        """For each LR of the grid: above the best LR, and worse than the best loss by more than DEGRADED."""
        limit = self.best_loss + DEGRADED
        return tuple(lr > self.best_lr and loss > limit for lr, loss in zip(self.lrs, self.losses, strict=True))


def lr_sensitivity(
    lrs: Sequence[float],
    losses: Sequence[float | None],
    loss_init: float | Sequence[float],
) -> LRSensitivity:
    """E over the LR grid of min(l, l_0) - l*, the plain mean over its n points (Wortsman et al. 2023, section 2.2).

    l is the final loss (None, NaN and Inf count as l_0), l_0 the loss at initialisation, l* the best loss of the grid.
    A model that never learns scores 0, so the number is to be shown next to its curve (Appendix B).
    """
    if not len(lrs) or len(lrs) != len(losses):
        raise ValueError(f"{len(lrs)} learning rates with {len(losses)} losses")
    rate = np.asarray(lrs, dtype=float)
    if len(np.unique(rate)) < len(rate) or not (np.isfinite(rate) & (rate > 0)).all():
        raise ValueError(f"learning rates must be positive and differ from each other: {list(lrs)}")
    init = np.broadcast_to(np.asarray(loss_init, dtype=float), rate.shape)
    if not np.isfinite(init).all():
        raise ValueError(f"the loss at initialisation is {loss_init}")
    order = np.argsort(rate)
    rate, init = rate[order], init[order]
    final = np.array([np.nan if loss is None else loss for loss in losses], dtype=float)[order]
    diverged = ~np.isfinite(final) | (final >= init)
    capped = np.where(diverged, init, final)
    best = int(np.argmin(capped))
    degraded = (rate > rate[best]) & (capped > capped[best] + DEGRADED)
    first = int(np.argmax(degraded)) if degraded.any() else None
    diverging = rate[diverged & (rate >= rate[best])]
    return LRSensitivity(
        lrs=tuple(rate.tolist()),
        losses=tuple(capped.tolist()),
        loss_init=float(init.max()),
        sensitivity=float(np.mean(capped - capped[best])),
        best_loss=float(capped[best]),
        best_lr=float(rate[best]),
        first_diverging_lr=float(diverging[0]) if len(diverging) else None,
        first_degraded_lr=None if first is None else float(rate[first]),
        critical_lr=None if first is None else _crossing(rate, capped, first, capped[best] + DEGRADED),
    )


def _crossing(rate: Any, loss: Any, first: int, level: float) -> float:
    """The LR at which the line between points first - 1 and first, loss against log LR, is at `level`."""
    share = (level - loss[first - 1]) / (loss[first] - loss[first - 1])
    return float(rate[first - 1] * (rate[first] / rate[first - 1]) ** share)


def coupled_lr_sensitivity(lrs: Sequence[float], losses: Sequence[float | None], loss_init: float) -> float:
    """LR sensitivity under coupled weight decay: the lower of those without the largest and without the smallest LR.

    The paper takes the minimum over 1e-4 ... 1e-1 and 3e-4 ... 3e-1, eight LRs in all, since coupled decay shifts
    the range of good LRs down (section 3.2.2).
    """
    if len(lrs) < 2:
        raise ValueError("two windows need at least two learning rates")
    order = np.argsort(np.asarray(lrs, dtype=float))
    windows = (order[:-1], order[1:])
    return min(lr_sensitivity([lrs[i] for i in w], [losses[i] for i in w], loss_init).sensitivity for w in windows)


@dataclass(frozen=True)
class OverSeeds:
    """The same LR grid at several seeds."""

    by_seed: Mapping[int, LRSensitivity]

    @property
    def first(self) -> LRSensitivity:
        return next(iter(self.by_seed.values()))

    @property
    def mean(self) -> float:
        """Of the seeds' LR sensitivities."""
        return float(np.mean([s.sensitivity for s in self.by_seed.values()]))

    @property
    def std(self) -> float | None:
        """Sample standard deviation of the seeds' LR sensitivities; None for one seed."""
        values = [s.sensitivity for s in self.by_seed.values()]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def median(self, field: str) -> float | None:
        """Of a learning rate that may lie beyond the grid (None), over seeds; None where most seeds have none."""
        found = [getattr(s, field) for s in self.by_seed.values()]
        logs = sorted(np.inf if lr is None else np.log(lr) for lr in found)
        middle = (logs[(len(logs) - 1) // 2] + logs[len(logs) // 2]) / 2
        return float(np.exp(middle)) if np.isfinite(middle) else None


def over_seeds(
    lrs: Mapping[int, Sequence[float]],
    losses: Mapping[int, Sequence[float | None]],
    loss_init: Mapping[int, float | Sequence[float]],
) -> OverSeeds:
    """LR sensitivity at each seed. They must share the LR grid: a sensitivity over another grid is another number."""
    grids = {seed: sorted(grid) for seed, grid in lrs.items()}
    if not grids:
        raise ValueError("no seeds")
    one, *others = grids
    for seed in others:
        if not np.array_equal(grids[one], grids[seed]):
            raise ValueError(f"the LR grid of seed {seed}, {grids[seed]}, is not that of seed {one}, {grids[one]}")
    return OverSeeds({s: lr_sensitivity(lrs[s], losses[s], loss_init[s]) for s in sorted(lrs)})


def of_runs(runs: pd.DataFrame) -> OverSeeds:
    """The same from the rows of ended runs that differ in LR and seed only."""
    seeds: dict[int, pd.DataFrame] = {int(seed): group for seed, group in runs.groupby("seed")}
    return over_seeds(
        {s: g["optimizer.lr"].tolist() for s, g in seeds.items()},
        {s: g["validation/loss_final"].tolist() for s, g in seeds.items()},
        {s: g["validation/loss_init"].tolist() for s, g in seeds.items()},
    )
