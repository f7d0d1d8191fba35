"""Chooses the learning rates to train: a coarse grid, then bisection of the interval in which a curve degrades.

Learning rates are integer places k on a grid of quarter octaves: LR = (the recipe's LR) x 2^(k / 4).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from train.results.sensitivity import LRSensitivity, lr_sensitivity

PER_OCTAVE = 4
LOWEST, HIGHEST = -16, 24
"""Ends of the window: a sixteenth of the recipe's LR and 64 times it."""
COARSE = (0, 8, 16)
FIRST_WIDTH, SECOND_WIDTH, LAST_WIDTH = 4, 2, 1
"""Widths of brackets in places: factors of 2, 1.41 and 1.19 in the LR."""


@dataclass(frozen=True)
class Loss:
    """The end of a run: its final loss, None if not finite, and its loss at initialisation."""

    final: float | None
    init: float

    @property
    def capped(self) -> float:
        """Returns the final loss, at most the loss at initialisation."""
        return self.init if self.final is None or not self.final < self.init else self.final


Known = Mapping[int, Loss]
"""The ended runs of one recipe, size and seed, by place."""


def learning_rate(base: float, k: int) -> float:
    """Returns the learning rate at a place, rounded to four digits so that it has a short name."""
    return float(f"{base * 2 ** (k / PER_OCTAVE):.4g}")


def curve(known: Known) -> LRSensitivity:
    """Returns the curve of loss against place; its LRs are 2^(k / 4), so that they are positive."""
    places = sorted(known)
    lrs = [2.0 ** (k / PER_OCTAVE) for k in places]
    return lr_sensitivity(lrs, [known[k].final for k in places], [known[k].init for k in places])


@dataclass(frozen=True)
class Bracket:
    """Places of the best loss, of the last sound LR above it and of the first degraded one, None without one."""

    best: int
    sound: int
    degraded: int | None

    @property
    def width(self) -> int | None:
        return None if self.degraded is None else self.degraded - self.sound


def bracket(known: Known) -> Bracket:
    """Returns where the curve degrades: at the first LR above the best one with a loss 0.1 nats above its best."""
    places, bad = sorted(known), curve(known).degraded
    best = min(places, key=lambda k: known[k].capped)
    first = bad.index(True) if True in bad else None
    return Bracket(best, places[-1] if first is None else places[first - 1], None if first is None else places[first])


def learns_nothing(losses: Iterable[Loss]) -> bool:
    """Returns whether every run ended at or above its loss at initialisation."""
    return all(loss.capped >= loss.init for loss in losses)


@dataclass(frozen=True)
class Wish:
    """Places that a curve should be trained at next, and how urgent that is: lower levels come first."""

    level: int
    places: tuple[int, ...]


BRACKETED = 3
"""The level from which the critical LR is known to a factor of 2."""


def wish(known: Known, hint: Bracket | None = None, find_best: bool = True) -> Wish | None:
    """Returns what to train next for one curve, or None if it is as fine as it gets.

    `hint` is the bracket of a smaller size or another seed, around which the curve then starts. `find_best` asks for an
    LR below the best one too, so that the optimum lies inside the grid.
    """
    if not known:
        return Wish(0, _start(hint))
    if learns_nothing(known.values()):
        return Wish(1, (max(min(known) - 8, LOWEST),)) if min(known) > LOWEST else None
    found = bracket(known)
    step = 8 if hint is None else 4
    wanted: list[int] = []
    if found.degraded is None and max(known) < HIGHEST:
        wanted.append(min(max(known) + step, HIGHEST))
    if found.best == min(known) and found.best > LOWEST and find_best:
        wanted.append(max(found.best - 4, LOWEST))
    if wanted:
        return Wish(1, tuple(wanted))
    for level, width in ((2, FIRST_WIDTH), (4, SECOND_WIDTH), (5, LAST_WIDTH)):
        if found.width is not None and found.width > width:
            assert found.degraded is not None
            return Wish(level, ((found.sound + found.degraded) // 2,))
    return None


def _start(hint: Bracket | None) -> tuple[int, ...]:
    if hint is None:
        return COARSE
    if hint.degraded is None:
        return tuple(sorted({hint.best, hint.sound}))
    # A bracket that is narrower than seeds and sizes differ would often miss.
    pad = max(0, FIRST_WIDTH - (hint.degraded - hint.sound)) // 2
    return tuple(sorted({hint.best, max(hint.best, hint.sound - pad), min(HIGHEST, hint.degraded + pad)}))
