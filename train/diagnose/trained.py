"""Reads the arms of a trained sweep as recipes, so that cards need no training of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conf.axis import ConfigError, near
from train.diagnose.measured import Measured, Run
from train.diagnose.search import Loss
from train.results.arms import with_arms
from train.results.sweep import SweepResults, load_sweep
from train.runfolder.folder import STOPPED

if TYPE_CHECKING:
    import pandas as pd


def arms(folder: Path, wanted: Sequence[str]) -> list[Measured]:
    """Returns the arms of a sweep, or those named, in the order of the experiment.

    Raises ConfigError for a folder without a sweep, an unknown arm, or one without ended runs.
    """
    sweep = load_sweep(folder)
    runs = with_arms(sweep.runs)
    names = list(dict.fromkeys(runs["arm"]))
    for name in wanted:
        if name not in names:
            known = near(name, names) if any(names) else "the sweep has no arms, so leave out --arm"
            raise ConfigError(f"--arm {name!r} is no arm of {folder}: {known}")
    every = [runs[runs["arm"] == name].drop_duplicates("run") for name in names if not wanted or name in wanted]
    sizes = sorted({n for one in every for n in one["size"][one["ended"]]})
    found = [_arm(sweep, one, sizes) for one in every if one["ended"].any()]
    if not found:
        raise ConfigError(f"{folder}: a card needs runs that have ended, and none has")
    return found


def _arm(sweep: SweepResults, every: pd.DataFrame, sizes: Sequence[float]) -> Measured:
    """Returns what the ended runs of one arm have measured. `sizes` are those of all arms, so that arms compare."""
    from train.config.compose import from_file  # loads torch

    runs = every[every["ended"]]
    left = every[~every["ended"]]
    known: dict[float, str] = {float(n): str(one["model.name"].iloc[0]) for n, one in runs.groupby("size")}
    read = tuple(
        Run(
            name=run["run"],
            size=sizes.index(run["size"]),
            seed=int(run["seed"]),
            lr=run["optimizer.lr"],
            loss=Loss(_finite(run["validation/loss_final"]), run["validation/loss_init"]),
            stopped=run["state"] == STOPPED,
            seconds=run["seconds"],
        )
        for run in runs.to_dict("records")
    )
    curves = runs.groupby(["size", "seed"])["optimizer.lr"].nunique().groupby("size").max()
    alone = ", ".join(model for n, model in known.items() if curves[n] < 2)
    notes = [f"runs at one LR alone, which are no curve, at {alone}"] if alone else []
    if len(left):
        lrs = [f"{lr:g}" for lr in sorted(set(left["optimizer.lr"].dropna()))]
        at = f", at LR {', '.join(lrs)}" if lrs else ""
        notes.append(f"{len(left)} of {len(every)} runs have no result{at}: its curves are without them")
    floors = runs["floor/unigram"].dropna().tolist() if "floor/unigram" in runs else []
    return Measured(
        name=runs["arm"].iloc[0] or sweep.name,
        overrides=(),
        config=from_file(sweep.metrics.folders[str(runs["run"].iloc[0])].path / "config.yaml"),
        models=tuple(known.get(n, "") for n in sizes),
        n={i: n for i, n in enumerate(sizes) if n in known},
        runs=read,
        metrics=sweep.metrics,
        top=float(every["optimizer.lr"].max()),
        floor=floors[0] if floors else None,
        notes=tuple(notes),
        more="train more LRs or seeds",
        absent=frozenset(i for i, n in enumerate(sizes) if n not in known),
        trained=True,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
