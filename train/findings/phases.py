"""The phases of learning of Liu et al. 2022 (arXiv 2205.10343, section 4), for runs on data with answers.

A run is right on training and on held-out examples from the first watched step at which it answers LEVEL of them.

| phase | training examples | held-out examples | the second after the first |
|---|---|---|---|
| comprehension | right | right | by less than DELAY of the run |
| grokking | right | right | by DELAY of the run or more |
| memorization | right | never | |
| confusion | never | any | |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.findings.probes import first_step, series

if TYPE_CHECKING:
    import pandas as pd

TRAINING, HELD_OUT = "train/accuracy", "validation/accuracy"
LEVEL = 0.9
"""The paper's."""
DELAY = 0.1
"""Share of a run. The paper's is a hundredth of its 100,000 steps; a run here is 50 times shorter, and a hundredth of
it less than what training itself takes to get to LEVEL."""
PHASES = ("memorization", "grokking", "comprehension", "confusion")
"""In the order in which the paper's diagrams pass them from no decay to too much."""


def right_from(rows: pd.DataFrame, accuracy: str) -> int | None:
    """Returns the first step at which the accuracy is LEVEL or more, or None."""
    found = series(rows, accuracy)
    return first_step(found, found >= LEVEL)


def delay(rows: pd.DataFrame, steps: int) -> int | None:
    """Returns the steps by which held-out examples come after those of training, those left of the run's `steps` if
    they never do; None if those of training are never right."""
    training, held_out = right_from(rows, TRAINING), right_from(rows, HELD_OUT)
    if training is None:
        return None
    return (steps if held_out is None else held_out) - training


def phase(rows: pd.DataFrame, steps: int) -> str:
    """Returns the phase of a run by its metrics and the steps that it was to have."""
    waited = delay(rows, steps)
    if waited is None:
        return "confusion"
    if right_from(rows, HELD_OUT) is None:
        return "memorization"
    return "comprehension" if waited < DELAY * steps else "grokking"
