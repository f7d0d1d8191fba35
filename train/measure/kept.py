"""Measures the ended runs of a sweep at their final weights, each once; what is found stays in the run folders."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from train.results.sweep import SweepResults
from train.runfolder.files import write_atomically
from train.runfolder.folder import RunFolder


def with_measured(sweep: SweepResults, measurements: Iterable[str]) -> SweepResults:
    """Returns the sweep with a column `MEASUREMENT/NAME` for each number of these measurements.

    A measurement is a module of train.measure with `measured(path) -> dict[str, float]`. Runs without final weights,
    as in a copy of a sweep that left them out, are not measured.
    """
    folders = [sweep.metrics.folders[run] for run in sweep.ended["run"]]
    for what in measurements:
        missing = [f for f in folders if not is_measured(f.measured(), what) and (f.path / "weights.pt").exists()]
        if missing:
            print(f"measuring {what}, once: {len(missing)} runs", file=sys.stderr, flush=True)
        for folder in missing:
            measure(folder.path, what)
    runs = sweep.runs.copy()
    for folder in folders:
        for name, value in folder.measured().items():
            runs.loc[runs["run"] == folder.path.name, name] = value
    return replace(sweep, runs=runs)


def measure(path: Path, what: str) -> None:
    """Measures a run and adds the numbers to its measured.json.

    Raises ConfigError while the run is being trained.
    """
    folder = RunFolder(path)
    with folder.held():
        found = importlib.import_module(f"train.measure.{what}").measured(path)
        kept = folder.measured() | {f"{what}/{name}": value for name, value in found.items()}
        write_atomically(path / "measured.json", json.dumps(kept, indent=1))


def is_measured(numbers: Mapping[str, object], what: str) -> bool:
    """Returns whether a run's numbers, by name, hold one of this measurement that is known."""
    return any(name.startswith(f"{what}/") and value == value for name, value in numbers.items())
