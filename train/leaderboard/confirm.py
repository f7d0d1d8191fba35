"""The second half of a leaderboard: more seeds at the learning rate that the first half found best."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.config.grid import compose_all
from train.results.arms import with_arms
from train.results.sensitivity import of_runs
from train.sweeps.plan import Sweep

if TYPE_CHECKING:
    import pandas as pd

SEEDS = (1, 2, 3)
"""Of the runs at the best LR. The window has seed 0."""


def best_runs(runs: pd.DataFrame) -> dict[str, str]:
    """The run of the best LR of each choice and size whose window is complete, and its choice; none where all of it
    diverged."""
    found = {}
    for (_, arm), group in with_arms(runs).groupby(["size", "arm"], sort=False):
        if group["ended"].all():
            curve = of_runs(group).first
            at_best = group[group["optimizer.lr"] == curve.best_lr].iloc[0]
            if curve.best_loss < curve.loss_init:
                found[str(at_best["run"])] = str(arm)
    return found


def confirmation(window: Sweep, runs: pd.DataFrame) -> Sweep | None:
    """The sweep of SEEDS at each best LR, in a folder beside the window's, its arms called as in `runs`; None when no
    choice has one yet."""
    points_of = {config.run_name(): point for config, point in zip(window.configs, window.points, strict=True)}
    found = [
        (arm, [*(o for o in points_of[run] if o.partition("=")[0] != "seed"), f"seed={seed}"])
        for run, arm in best_runs(runs).items()
        for seed in SEEDS
    ]
    points = [point for _, point in found]
    folder = window.folder.with_name(f"{window.folder.name}-seeds")
    return Sweep(folder, window.overrides, points, compose_all(points), [arm for arm, _ in found]) if found else None
