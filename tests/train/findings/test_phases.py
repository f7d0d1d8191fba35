"""The phases of learning: their definitions at the edges, the claim on their order, and the diagram."""

import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from tests.train.findings.probe_frames import sweep
from train.findings.base import find
from train.findings.phase_figures import cells
from train.findings.phases import DELAY, LEVEL, PHASES, delay, phase, right_from
from train.findings.quantities import values

STEPS = 100


def rows(training, held_out, level=LEVEL):
    """Metrics of a run that is right on training and held-out examples from these steps on, or never."""
    steps = np.arange(-1, STEPS)
    found = {"step": steps}
    for name, since in (("train/accuracy", training), ("validation/accuracy", held_out)):
        found[name] = np.where(steps >= (math.inf if since is None else since), level, 0.89999)
    return pd.DataFrame(found)


def test_the_definitions():
    assert (LEVEL, DELAY) == (0.9, 0.1)
    assert PHASES == ("memorization", "grokking", "comprehension", "confusion")


@pytest.mark.parametrize(
    ("training", "held_out", "expected", "waited"),
    [
        (10, 10, "comprehension", 0),
        (10, 5, "comprehension", -5),
        (10, 19, "comprehension", 9),
        (10, 20, "grokking", 10),
        (10, STEPS - 1, "grokking", 89),
        (10, None, "memorization", 90),
        (STEPS - 1, None, "memorization", 1),
        (None, None, "confusion", None),
        (None, 10, "confusion", None),
    ],
)
def test_phases_at_their_edges(training, held_out, expected, waited):
    found = rows(training, held_out)
    assert phase(found, STEPS) == expected
    assert delay(found, STEPS) == waited


def test_shares_are_of_the_steps_that_a_run_was_to_have():
    """It went to NaN at step 20 of 100."""
    short = rows(5, 12)[:21]
    assert phase(short, STEPS) == "comprehension"
    assert delay(rows(5, None)[:21], STEPS) == 95


def test_the_level_itself_counts_and_less_does_not():
    assert right_from(rows(3, None), "train/accuracy") == 3
    assert right_from(rows(3, None, level=0.8999), "train/accuracy") is None
    # The validation before training is no step of it.
    early = rows(3, -1)
    assert right_from(early, "validation/accuracy") == 0
    assert right_from(early.drop(columns="train/accuracy"), "train/accuracy") is None


CLAIM = "grokking_phases"
DECAYS = [name for name in find(CLAIM).arms.known if "few" not in name]
FEW = [name for name in find(CLAIM).arms.known if "few" in name]
LRS = tuple(find(CLAIM).grid.lrs)
AT = {"memorization": (2, None), "grokking": (2, 60), "comprehension": (2, 7), "confusion": (None, None)}


def diagram(of, seeds=(0, 1, 2)):
    """Runs whose phase is `of(i, j)`, i the place of the decay and j that of the LR; of few pairs all memorize."""
    spec = find(CLAIM).arms.where

    def metrics(arm, n, lr, seed):
        name = of(DECAYS.index(arm), LRS.index(lr)) if arm in DECAYS else "memorization"
        training, held_out = AT[name]
        return {
            "train/accuracy": lambda step: float(training is not None and step >= training),
            "validation/accuracy": lambda step: float(held_out is not None and step >= held_out),
        }

    runs, frames = sweep(metrics, sizes=(12288,), lrs=LRS, seeds=seeds, arms=(*DECAYS, *FEW))
    columns = {key: [spec[arm][key] for arm in runs["arm"]] for key in ("optimizer.weight_decay", "data.share")}
    return runs.drop(columns="arm").assign(**columns), frames


def published(i, j):
    return "confusion" if i >= 4 else PHASES[min(2, (i + j) // 2)]


def test_the_published_order_is_reproduced():
    verdict = find(CLAIM).verdict(*diagram(published))
    assert [check.word[0] for check in verdict.checks] == ["reproduced"] * len(verdict.checks), [
        check.text for check in verdict.checks
    ]
    assert verdict.state == "reproduced"


@pytest.mark.parametrize(
    ("of", "word"),
    [
        (lambda i, j: PHASES[max(0, 2 - i)], "contradicted"),
        (lambda i, j: "memorization", "not testable at this scale"),
        (lambda i, j: "confusion", "not testable at this scale"),
        (lambda i, j: PHASES[(i + j) % 2], "not testable at this scale"),
    ],
)
def test_other_orders_are_not(of, word):
    assert find(CLAIM).verdict(*diagram(of)).state == word


def test_numbers_of_runs():
    runs, frames = diagram(published)
    made = find(CLAIM).sorted(runs, frames)
    first, last = DECAYS[0], DECAYS[-1]
    assert values(made, first, "phases_of_seed")["value"].unique().tolist() == [4]
    assert values(made, FEW[0], "phases_of_seed")["value"].unique().tolist() == [1]
    assert set(values(made, first, "phase", lr="lowest")["value"]) == {0}
    # Rows are watched at every tenth step: right from 10 on, and on held-out examples from 60 on or never.
    assert np.exp(values(made, first, "generalization_delay", lr="lowest")["value"]).tolist() == pytest.approx([91] * 3)
    assert values(made, last, "confused", lr="highest")["value"].tolist() == [1, 1, 1]
    assert values(made, last, "phase", lr="highest").empty
    assert values(made, last, "generalized", lr="highest")["value"].tolist() == [0, 0, 0]


def test_cells_of_the_diagram_count_seeds():
    runs, frames = diagram(published)
    few, many = sorted(set(runs["data.share"]))
    found = cells(find(CLAIM).sorted(runs, frames), "optimizer.weight_decay", "data.share")
    assert list(found) == [many, few]
    spec = find(CLAIM).arms.where
    for i, arm in enumerate(DECAYS):
        for j, lr in enumerate(LRS):
            assert found[many][lr, spec[arm]["optimizer.weight_decay"]] == Counter({published(i, j): 3})
    assert {name for counts in found[few].values() for name in counts} == {"memorization"}
