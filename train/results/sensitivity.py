"""Measures how the final loss depends on the learning rate: LR sensitivity and the LRs at which training breaks.

The definitions are from Wortsman et al. 2023 (arXiv 2309.14322), section 2.2 and Appendix B. Losses are final
validation losses in nats per token. Learning rates are the peaks of their schedules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

DEGRADED = 0.1
"""A run more than this many nats above the best loss of its LR grid counts as degraded.

The paper's diverged runs end near the loss at initialisation. A small model whose attention breaks still learns what it
can without attention and ends 0.2 to 1.5 nats above its best. Seeds differ by a few hundredths of a nat. 0.1 lies
between the two. A healthy curve also crosses this threshold at a large enough LR, so "degraded" only says that the LR
is too large for the model, not why.
"""


@dataclass(frozen=True)
class LRSensitivity:
    """Describes one curve of final loss against learning rate."""

    lrs: tuple[float, ...]
    """The LR grid, ascending."""
    losses: tuple[float, ...]
    """Final losses, capped at the loss at initialisation."""
    loss_init: float
    sensitivity: float
    """Mean of (capped loss - best_loss) over the grid, in nats."""
    best_loss: float
    best_lr: float
    first_diverging_lr: float | None
    """Smallest LR >= best_lr whose loss is non-finite or at least the loss at initialisation."""
    first_degraded_lr: float | None
    """Smallest LR > best_lr whose capped loss exceeds best_loss by more than DEGRADED; includes divergence."""
    critical_lr: float | None
    """LR at which the loss, linear in log LR, reaches best_loss + DEGRADED on its way to first_degraded_lr."""

    @property
    def trains(self) -> bool:
        """Returns whether the loss falls below that at initialisation at some LR."""
        return self.best_loss < self.loss_init

    @property
    def upper(self) -> float:
        """Returns the mean of (loss - best_loss) from the best LR up: doesn't take a slow start for an instability."""
        above = [loss for lr, loss in zip(self.lrs, self.losses, strict=True) if lr >= self.best_lr]
        return float(np.mean(above)) - self.best_loss

    @property
    def good_range(self) -> tuple[float, float]:
        """Returns the LRs around the best one between which the loss is within DEGRADED of it.

        They are interpolated like critical_lr, and end at the edges of the grid.
        """
        lrs, losses, level = np.array(self.lrs), np.array(self.losses), self.best_loss + DEGRADED
        best = self.lrs.index(self.best_lr)
        lower = lrs[0]
        above = np.flatnonzero(losses[:best] > level)
        if len(above):
            # Reversed, so that the crossing is the one on the way down to the next LR.
            lower = _crossing(lrs[::-1], losses[::-1], len(lrs) - 1 - int(above[-1]), level)
        return float(lower), self.critical_lr or self.lrs[-1]

    @property
    def degraded(self) -> tuple[bool, ...]:
        """Returns for each LR of the grid whether it is above best_lr and its loss above best_loss + DEGRADED."""
        limit = self.best_loss + DEGRADED
        return tuple(lr > self.best_lr and loss > limit for lr, loss in zip(self.lrs, self.losses, strict=True))


def lr_sensitivity(
    lrs: Sequence[float],
    losses: Sequence[float | None],
    loss_init: float | Sequence[float],
) -> LRSensitivity:
    """Returns the LR sensitivity, the mean of min(l, l_0) - l* over the LR grid, with the critical LRs of the curve.

    l is the final loss (None, NaN and Inf count as l_0), l_0 the loss at initialisation and l* the best loss of the
    grid (Wortsman et al. 2023, section 2.2). A model that never learns scores 0, so always show the curve next to the
    number (Appendix B). Raises ValueError if the inputs don't form a curve.
    """
    if not len(lrs) or len(lrs) != len(losses):
        raise ValueError(f"{len(lrs)} learning rates but {len(losses)} losses")
    rate = np.asarray(lrs, dtype=float)
    if len(np.unique(rate)) < len(rate) or not (np.isfinite(rate) & (rate > 0)).all():
        raise ValueError(f"learning rates must be positive and distinct: {list(lrs)}")
    init = np.broadcast_to(np.asarray(loss_init, dtype=float), rate.shape)
    if not np.isfinite(init).all():
        raise ValueError(f"the loss at initialisation must be finite: {loss_init}")
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
    """Returns the LR at which the loss reaches `level`, linear in log LR between points first - 1 and first."""
    share = (level - loss[first - 1]) / (loss[first] - loss[first - 1])
    return float(rate[first - 1] * (rate[first] / rate[first - 1]) ** share)


def coupled_lr_sensitivity(lrs: Sequence[float], losses: Sequence[float | None], loss_init: float) -> float:
    """Returns the LR sensitivity under coupled decay: the minimum over the grid without its largest or smallest LR.

    Coupled decay shifts the range of good LRs down. The paper therefore takes the minimum over two windows,
    1e-4 ... 1e-1 and 3e-4 ... 3e-1 (section 3.2.2). Raises ValueError for fewer than two learning rates.
    """
    if len(lrs) < 2:
        raise ValueError("two windows need at least two learning rates")
    order = np.argsort(np.asarray(lrs, dtype=float))
    windows = (order[:-1], order[1:])
    return min(lr_sensitivity([lrs[i] for i in w], [losses[i] for i in w], loss_init).sensitivity for w in windows)


@dataclass(frozen=True)
class OverSeeds:
    """Holds the curves of several seeds over the same LR grid."""

    by_seed: Mapping[int, LRSensitivity]

    @property
    def first(self) -> LRSensitivity:
        return next(iter(self.by_seed.values()))

    @property
    def mean(self) -> float:
        """Returns the mean LR sensitivity over seeds."""
        return float(np.mean([s.sensitivity for s in self.by_seed.values()]))

    @property
    def std(self) -> float | None:
        """Returns the sample standard deviation of LR sensitivity over seeds, None for one seed."""
        values = [s.sensitivity for s in self.by_seed.values()]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    def median(self, field: str) -> float | None:
        """Returns the geometric median of an LR field over seeds, where None stands for beyond the grid."""
        found = [getattr(s, field) for s in self.by_seed.values()]
        logs = sorted(np.inf if lr is None else np.log(lr) for lr in found)
        middle = (logs[(len(logs) - 1) // 2] + logs[len(logs) // 2]) / 2
        return float(np.exp(middle)) if np.isfinite(middle) else None


def over_seeds(
    lrs: Mapping[int, Sequence[float]],
    losses: Mapping[int, Sequence[float | None]],
    loss_init: Mapping[int, float | Sequence[float]],
) -> OverSeeds:
    """Returns the LR sensitivity of each seed.

    Raises ValueError if the seeds have different LR grids, over which sensitivities are not comparable.
    """
    grids = {seed: sorted(grid) for seed, grid in lrs.items()}
    if not grids:
        raise ValueError("no seeds")
    one, *others = grids
    for seed in others:
        if not np.array_equal(grids[one], grids[seed]):
            raise ValueError(f"seeds must share an LR grid: seed {seed} has {grids[seed]}, seed {one} has {grids[one]}")
    return OverSeeds({s: lr_sensitivity(lrs[s], losses[s], loss_init[s]) for s in sorted(lrs)})


def of_runs(runs: pd.DataFrame) -> OverSeeds:
    """Returns the LR sensitivity of each seed from rows of ended runs that differ only in LR and seed."""
    seeds: dict[int, pd.DataFrame] = {int(seed): group for seed, group in runs.groupby("seed")}
    return over_seeds(
        {s: g["optimizer.lr"].tolist() for s, g in seeds.items()},
        {s: g["validation/loss_final"].tolist() for s, g in seeds.items()},
        {s: g["validation/loss_init"].tolist() for s, g in seeds.items()},
    )
