"""Trains what the search asks for, round by round, within a budget, and stops runs that are clearly broken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from train.config.grid import compose_all
from train.config.launcher import Local
from train.config.schema import Config
from train.diagnose.recipe import Recipe
from train.diagnose.search import BRACKETED, Bracket, Known, Loss, bracket, learning_rate, learns_nothing, wish
from train.runfolder.folder import ENDED, STOPPED, RunFolder
from train.sweep import launch
from train.sweeps.early_stop import Judge, estimate
from train.sweeps.live_table import relative_cost
from train.sweeps.plan import Sweep

RESERVED = 4
"""Runs that are kept in the budget for each size that has not been bracketed yet."""


@dataclass(frozen=True, order=True)
class Point:
    """One run, as the search sees it. `size` and `arm` are indices."""

    k: int
    size: int
    arm: int
    seed: int


@dataclass(frozen=True)
class Cell:
    """One curve of loss against LR."""

    arm: int
    size: int
    seed: int


@dataclass(frozen=True)
class Ended:
    """A run that has ended or was stopped."""

    point: Point
    config: Config
    folder: RunFolder
    state: str
    loss: Loss
    n: int | None
    seconds: float


class Study:
    """A search for the critical LR of several recipes at several sizes, whose runs are one sweep."""

    def __init__(
        self,
        folder: Path,
        recipes: Sequence[Recipe],
        sizes: Sequence[Sequence[str]],
        budget: float,
        hints: Mapping[Cell, Bracket] | None = None,
        seeds: int = 2,
        finest: int = 5,
    ) -> None:
        """Takes `budget` in seconds of one process. `hints` are brackets around which curves start.

        Wishes of a level above `finest` are left out.
        """
        self.folder, self.recipes, self.sizes, self.budget = folder, recipes, sizes, budget
        self.hints, self.seeds, self.finest = dict(hints or {}), seeds, finest
        self.points: set[Point] = set()
        self._configs: dict[Point, Config] = {}

    @cached_property
    def cells(self) -> list[Cell]:
        first = self.recipes[0].config.seed
        return [
            Cell(arm, size, first + seed)
            for arm in range(len(self.recipes)) for size in range(len(self.sizes)) for seed in range(self.seeds)
        ]  # fmt: skip

    def overrides(self, point: Point) -> list[str]:
        """Returns the overrides of a run. It watches its sharpness where that goes, which changes no other number."""
        recipe = self.recipes[point.arm]
        own = [o for o in recipe.overrides if o.partition("=")[0] not in ("seed", "optimizer.lr", "finding", "name")]
        if (recipe.config.devices or 1) * recipe.config.nodes == 1 and not any("watch.sharpness=" in o for o in own):
            own.append("watch.sharpness=true")
        lr = learning_rate(recipe.config.optimizer.lr, point.k)
        return [*own, *self.sizes[point.size], f"seed={point.seed}", f"optimizer.lr={lr}"]

    def config(self, point: Point) -> Config:
        return self._configs[point]

    def add(self, points: Iterable[Point]) -> None:
        """Adds runs to the sweep. Raises ConfigError if one of them can't be trained."""
        new = [point for point in points if point not in self._configs]
        composed = compose_all([self.overrides(point) for point in new])
        for point, config in zip(new, composed, strict=True):
            own = replace(config, finding=None, name=None)
            self._configs[point] = replace(own, stop_when="broken") if isinstance(own.launcher, Local) else own
        self.points |= set(new)

    @property
    def sweep(self) -> Sweep:
        points = sorted(self.points)
        several = len(self.recipes) > 1
        names = [self.recipes[p.arm].name if several else None for p in points]
        words = [*self.recipes[0].overrides]
        return Sweep(self.folder, words, [self.overrides(p) for p in points], [self._configs[p] for p in points], names)

    def ended(self) -> dict[Point, Ended]:
        """Returns the runs with a result, including stopped ones, whose final loss is estimated."""
        sweep = self.sweep
        found: dict[Point, Ended] = {}
        for point, config, run in zip(sorted(self.points), sweep.configs, sweep.runs(), strict=True):
            state, summary = run.state(), run.summary()
            if state in ENDED and summary:
                loss = Loss(summary["validation/loss_final"], summary["validation/loss_init"])
                found[point] = Ended(point, config, run, state, loss, summary["N"], summary["seconds"])
        for point, config, run in zip(sorted(self.points), sweep.configs, sweep.runs(), strict=True):
            if run.state() == STOPPED:
                found[point] = self._stopped(point, config, run, found)
        return found

    def _stopped(self, point: Point, config: Config, run: RunFolder, ended: Mapping[Point, Ended]) -> Ended:
        """Returns a stopped run with its estimated final loss. One that watch.stop ended counts as diverged."""
        lower = [e.loss for p, e in ended.items() if replace(p, k=0) == replace(point, k=0) and p.k < point.k]
        init = next((loss.init for loss in lower), run.metrics()[0]["validation/loss"])
        final = estimate(run.status(), [loss.final for loss in lower])
        return Ended(point, config, run, STOPPED, Loss(final, init), None, run.seconds())

    def known(self, ended: Mapping[Point, Ended] | None = None) -> dict[Cell, Known]:
        """Returns the ended runs of every curve."""
        found: dict[Cell, dict[int, Loss]] = {cell: {} for cell in self.cells}
        for p, run in (self.ended() if ended is None else ended).items():
            found[Cell(p.arm, p.size, p.seed)][p.k] = run.loss
        return dict(found)

    def wishes(self, known: Mapping[Cell, Known]) -> list[tuple[int, Point]]:
        """Returns the runs to train next with their levels; the curves of other sizes and seeds tell where to start."""
        found: list[tuple[int, Point]] = []
        for cell in self.cells:
            hint, ready = self._hint(cell, known)
            if not ready:
                continue
            first = cell.seed == self.recipes[0].config.seed
            asked = wish(known[cell], hint, find_best=first and cell not in self.hints)
            if asked is not None and asked.level <= self.finest:
                level = asked.level if first else max(asked.level, BRACKETED)
                found += [(level, Point(k, cell.size, cell.arm, cell.seed)) for k in asked.places]
        return found

    def _hint(self, cell: Cell, known: Mapping[Cell, Known]) -> tuple[Bracket | None, bool]:
        """Returns where a curve starts, and whether the curve that tells it is far enough."""
        if cell in self.hints:
            return self.hints[cell], True
        first = self.recipes[0].config.seed
        if cell.seed != first:
            before = Cell(cell.arm, cell.size, cell.seed - 1)
        elif cell.size:
            before = Cell(cell.arm, cell.size - 1, first)
        else:
            return None, True
        if not known[before]:
            return None, False
        hint, ready = self._hint(before, known)
        asked = wish(known[before], hint, find_best=before.seed == first and before not in self.hints)
        if not ready or (asked is not None and asked.level < BRACKETED):
            return None, False
        return (None if learns_nothing(known[before].values()) else bracket(known[before])), True

    def seconds(self, size: int, ended: Mapping[Point, Ended]) -> float:
        """Returns the expected time of a run of this size, from runs that trained to their end; 0 without any."""
        whole = [run for run in ended.values() if run.state == "finished"]
        own = [run.seconds for run in whole if run.point.size == size]
        if own:
            return float(np.mean(own))
        cost = {run.point.size: relative_cost(run.config) for run in whole}
        if not cost:
            return 0.0
        near = max(cost)
        of_size = relative_cost(compose_all([self.overrides(Point(0, size, 0, 0))])[0])
        return float(np.mean([r.seconds for r in whole if r.point.size == near])) * of_size / cost[near]

    def chosen(self, ended: Mapping[Point, Ended]) -> list[Point]:
        """Returns the wished runs that the budget allows, most urgent first, without those under way."""
        known = self.known(ended)
        left = self.budget - sum(run.seconds for run in ended.values())
        asked = sorted(self.wishes(known), key=lambda wished: (wished[0], wished[1].size, wished[1]))
        open_ = {p.size for level, p in asked if level < BRACKETED}
        open_ |= set(range(len(self.sizes))) - {cell.size for cell in self.cells if known[cell]}
        reserve = sum(RESERVED * self.seconds(size, ended) for size in open_) * len(self.recipes)
        chosen = []
        for level, point in asked:
            cost = self.seconds(point.size, ended)
            if cost <= left - (reserve if level >= BRACKETED else 0.0):
                chosen.append(point)
                left -= cost
        return chosen

    def run(self) -> bool:
        """Trains rounds until nothing more is wished for or affordable. Returns whether every run has a result.

        With a launcher that only submits runs, it returns False after the first round.
        """
        while True:
            self.recall()
            ended = self.ended()
            waiting = [point for point in self.points if point not in ended]
            new = [point for point in self.chosen(ended) if point not in self.points]
            if not waiting and not new:
                self.sweep.require_same_data()  # With runs to train, `launch` looks.
                return True
            self.add(new)
            launch(self.sweep, judge=Judge(self.sweep))
            after = self.ended()
            if any(point not in after for point in self.points):
                return False

    def recall(self) -> None:
        """Adds the runs that the search has asked for before, as far as they have a result or have begun."""
        while True:
            known = self.known()
            again = [point for _, point in self.wishes(known) if point not in self.points]
            if not again:
                return
            self.add(again)
            sweep = self.sweep
            kept = {p for p in again if sweep.run(self._configs[p].run_name()).status()}
            for point in set(again) - kept:
                self.points.discard(point)
                del self._configs[point]
            if not kept:
                return
