"""A recipe's runs as a card reads them, whether a study trained them or a sweep did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from train.config.compose import compose
from train.config.schema import Config
from train.diagnose.search import HIGHEST, Loss, learning_rate
from train.diagnose.study import Ended, Point, Study
from train.results.sensitivity import LRSensitivity, lr_sensitivity
from train.results.sweep import Metrics


@dataclass(frozen=True)
class Run:
    """A run that has ended or was stopped early."""

    name: str
    size: int
    """Index of its size, from small to large."""
    seed: int
    lr: float
    loss: Loss
    """Estimated where it was stopped."""
    stopped: bool
    seconds: float


@dataclass(frozen=True)
class Measured:
    """A recipe and its runs at several sizes."""

    name: str
    overrides: tuple[str, ...]
    config: Config
    models: tuple[str, ...]
    """Names of the sizes."""
    n: Mapping[int, float]
    """N by size, as far as a run of it came to its end."""
    runs: tuple[Run, ...]
    metrics: Metrics
    """Recorded rows by name of the run."""
    top: float
    """Highest LR at which the recipe was to be trained if it doesn't break before."""
    floor: float | None
    """Loss of a unigram model, which a run has to beat to count as trained."""
    notes: tuple[str, ...] = ()
    more: str = ""
    """What narrows intervals, as advice."""
    optimum_of: int | None = None
    """Seed whose curves have an optimum, as only they were searched for one; None for all."""
    absent: frozenset[int] = frozenset()
    """Sizes at which the recipe was not to be trained, but others of the sweep were."""
    trained: bool = False
    """Whether it is an arm of a trained sweep."""

    def curves(self) -> dict[tuple[int, int], list[Run]]:
        """Returns the runs by size and seed, in order of LR."""
        found: dict[tuple[int, int], list[Run]] = {}
        for run in sorted(self.runs, key=lambda run: (run.size, run.seed, run.lr)):
            found.setdefault((run.size, run.seed), []).append(run)
        return found

    def trains(self, run: Run) -> bool:
        """Returns whether a run ended below its loss at initialisation and below a unigram model."""
        return run.loss.capped < min(run.loss.init, math.inf if self.floor is None else self.floor)

    @cached_property
    def untrained(self) -> frozenset[int]:
        """Returns the sizes at which runs have ended, but none has trained."""
        return frozenset({run.size for run in self.runs} - {run.size for run in self.runs if self.trains(run)})


def sensitivity(runs: Sequence[Run]) -> LRSensitivity:
    """Returns the curve of loss against LR of runs of one size and seed, in order of LR."""
    lrs, losses, init = zip(*[(run.lr, run.loss.final, run.loss.init) for run in runs], strict=True)
    return lr_sensitivity(lrs, losses, init)


def of_study(study: Study, arm: int, ended: Mapping[Point, Ended] | None = None) -> Measured:
    """Returns what a study has measured of one of its recipes."""
    ended = study.ended() if ended is None else ended
    own = {point: run for point, run in ended.items() if point.arm == arm}
    recipe, base = study.recipes[arm], study.recipes[arm].config.optimizer.lr
    runs = tuple(
        Run(
            run.config.run_name(), p.size, p.seed, learning_rate(base, p.k), run.loss, run.state == "stopped",
            run.seconds,
        )
        for p, run in own.items()
    )  # fmt: skip
    return Measured(
        recipe.name, recipe.overrides, recipe.config, tuple(str(compose(words).model.name) for words in study.sizes),
        {p.size: float(run.n) for p, run in own.items() if run.n is not None}, runs,
        Metrics({run.config.run_name(): run.folder for run in own.values()}), learning_rate(base, HIGHEST),
        next((run.folder.summary().get("floor/unigram") for run in own.values() if run.n is not None), None),
        tuple(_left_open(study, arm, ended)), "raise --budget", recipe.config.seed,
    )  # fmt: skip


def _left_open(study: Study, arm: int, ended: Mapping[Point, Ended]) -> list[str]:
    """Returns what the budget left undone."""
    notes, known = [], study.known(ended)
    seen = {cell.size for cell, runs in known.items() if cell.arm == arm and len(runs) > 1}
    if unseen := [str(compose(words).model.name) for i, words in enumerate(study.sizes) if i not in seen]:
        notes.append(f"the budget ended before {', '.join(unseen)}: raise --budget; the same command goes on")
    if left := [p for _, p in study.wishes(known) if p.arm == arm and p not in study.points]:
        notes.append(f"the budget left {len(left)} runs undone that would narrow the brackets")
    if late := [p for p in study.points if p.arm == arm and p not in ended]:
        notes.append(f"{len(late)} runs have no result yet: the same command goes on with them")
    return notes


def at_one_size(found: Measured, size: int) -> Measured:
    """Returns what was measured at one size, which becomes the first."""
    runs = tuple(replace(run, size=0) for run in found.runs if run.size == size)
    n = {0: found.n[size]} if size in found.n else {}
    return replace(found, models=found.models[size : size + 1], n=n, runs=runs)
