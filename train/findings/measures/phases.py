"""What a claim on the phases of learning of Liu et al. 2022 (arXiv 2205.10343) compares."""

from __future__ import annotations

import math

from train.findings.arms import Arms
from train.findings.phases import PHASES, delay, phase
from train.findings.quantities import Row, measure

DIAGRAM = ("size", "seed", "data.share")
"""What the runs of a phase diagram have in common."""


@measure("phase", "phase, 0 memorization, 1 grokking, 2 comprehension")
def place(row: Row, sweep: Arms) -> float:
    """Returns the place in the order from memorization to comprehension; NaN in confusion, which has none."""
    found = phase(sweep.metrics[row["run"]], row["steps"])
    return math.nan if found == "confusion" else float(PHASES.index(found))


@measure("generalization_delay", "steps from training examples to held-out ones", log=True)
def generalization_delay(row: Row, sweep: Arms) -> float:
    """Returns the log of the delay, with at least one step; NaN in confusion."""
    found = delay(sweep.metrics[row["run"]], row["steps"])
    return math.nan if found is None else math.log(max(1, found))


@measure("confused", "share of runs in confusion")
def confused(row: Row, sweep: Arms) -> float:
    return float(phase(sweep.metrics[row["run"]], row["steps"]) == "confusion")


@measure("generalized", "share of runs in grokking or comprehension")
def generalized(row: Row, sweep: Arms) -> float:
    return float(phase(sweep.metrics[row["run"]], row["steps"]) in ("grokking", "comprehension"))


@measure("phases_of_seed", "phases in a seed's diagram")
def phases_of_seed(row: Row, sweep: Arms) -> float:
    """Returns the number of phases among the ended runs of the row's seed, size and share of the data."""
    runs = sweep.runs[sweep.runs["ended"]]
    for key in DIAGRAM:
        runs = runs[runs[key] == row[key]]
    return float(len({phase(sweep.metrics[run], row["steps"]) for run in runs["run"]}))
