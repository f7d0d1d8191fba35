"""Plans the confirming runs of a leaderboard: more seeds at each choice's best learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.results.arms import with_arms
from train.results.sensitivity import of_runs

if TYPE_CHECKING:
    import pandas as pd

    from train.sweeps.plan import Sweep

SEEDS = (21, 22, 23)
"""Seeds of the confirming runs. The window uses another."""


def best_runs(runs: pd.DataFrame) -> dict[str, str]:
    """Returns the name and choice of the run at the best LR for each choice and size.

    Choices with an incomplete window, or whose runs all diverged, are left out.
    """
    found = {}
    for (_, arm), group in with_arms(runs).groupby(["size", "arm"], sort=False):
        if group["ended"].all():
            curve = of_runs(group).first
            at_best = group[group["optimizer.lr"] == curve.best_lr].iloc[0]
            if curve.best_loss < curve.loss_init:
                found[str(at_best["run"])] = str(arm)
    return found


def confirmation(window: Sweep, runs: pd.DataFrame) -> Sweep | None:
    """Returns the sweep of SEEDS at each best LR, or None if no choice has a best LR yet.

    Its folder is next to the window's, and its arms have the same names as in `runs`.
    """
    from train.config.grid import compose_all  # loads torch
    from train.sweeps.plan import Sweep

    points_of = {config.run_name(): point for config, point in zip(window.configs, window.points, strict=True)}
    found = [
        (arm, [*(o for o in points_of[run] if o.partition("=")[0] != "seed"), f"seed={seed}"])
        for run, arm in best_runs(runs).items()
        for seed in SEEDS
    ]
    points = [point for _, point in found]
    folder = window.folder.with_name(f"{window.folder.name}-seeds")
    return Sweep(folder, window.overrides, points, compose_all(points), [arm for arm, _ in found]) if found else None
