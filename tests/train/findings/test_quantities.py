"""What is taken of a metric of a run, by hand, and the runs that a quantity is taken of."""

import math
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from tests.train.findings.frames import frame
from train.findings.arms import arms
from train.findings.quantities import Metric, records, values

STEPS = np.arange(100)
ROW = {"run": "r", "state": "finished", "steps": 100}


class Swept:
    metrics: ClassVar = {
        "r": pd.DataFrame(
            {"step": STEPS, "train/loss": 3.0, "m": STEPS, "n": 2.0, "up": 2.0 ** (STEPS // 10), "down": -1.0 * STEPS}
            | {f"residual/block{i}/rms": size for i, size in enumerate((1.0, 4.0, 6.0))}
        )
    }


def taken(**of):
    return Metric(**{"log": False, **of}).number(ROW, Swept)


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ({"metric": "m"}, 97),  # 95 to 99
        ({"metric": "m", "at": "max"}, 99),
        ({"metric": "m", "at": "last"}, 99),
        ({"metric": "m", "at": 0.5}, 47.5),  # the twentieth of the run up to there: 45 to 50
        ({"metric": "m", "at": 0.02}, 1),  # 0 to 2
        ({"metric": "m", "at": (0.2, 0.3)}, 25),
        ({"metric": "down", "at": (0.2, 0.3)}, 25),  # a magnitude
        ({"metric": "m", "sign": -1}, -97),
        ({"metric": "m", "log": True}, math.log(97)),
        ({"metric": "m", "over": "n"}, 48.5),
        ({"metric": "m", "over": "n", "log": True}, math.log(48.5)),
        ({"metric": "m", "minus": "n"}, 95),
        ({"metric": "up", "at": (0.95, 1), "since": 0.48}, 2**5),  # 2^9 from 95 on, 2^4 from 43 to 48
        ({"metric": "up", "at": (0.95, 1), "since": 0.48, "log": True}, 5 * math.log(2)),
        ({"metric": "residual/block*/rms"}, 11 / 3),
        ({"metric": "residual/block*/rms", "pool": "max"}, 6),
        ({"metric": "residual/block*/rms", "pool": "growth"}, math.log(1.5)),  # 4 over 1 is more
    ],
)
def test_what_is_taken_of_a_metric(of, expected):
    assert taken(**of) == pytest.approx(expected)


def test_a_metric_that_a_run_lacks_is_no_number():
    assert math.isnan(taken(metric="x"))
    assert math.isnan(taken(metric="x*"))


LOSSES = {"a": {1000: {1e-3: 5.2, 1e-2: 5.0, 3e-2: 5.05, 1e-1: 5.3}}}


def test_runs_are_broken_that_degrade_or_are_not_finished_and_all_know_the_best_one():
    """At 3e-2 the loss is within 0.1 nats of the best, but the run was stopped: its loss is an estimate."""
    runs = frame(LOSSES, (0, 1))
    late = runs["optimizer.lr"] == 3e-2
    runs = runs.assign(state=np.where(late, "stopped", "finished"))
    made = arms("test", runs, ["a"])
    found = {row["run"]: row for row in records(made, "a")}
    assert {name for name, row in found.items() if row["degraded"]} == {"a-1000-0.1-0", "a-1000-0.1-1"}
    assert {row["optimizer.lr"] for row in found.values() if row["broken"]} == {3e-2, 1e-1}
    for seed in (0, 1):
        row = found[f"a-1000-0.1-{seed}"]
        assert (row["reference"], row["best_lr"], row["best_loss"]) == (f"a-1000-0.01-{seed}", 1e-2, 5.0)
    assert sorted(set(values(made, "a", "loss", "sound")["lr"])) == [1e-3, 1e-2]
    assert values(made, "a", "above_best", "broken")["value"].tolist() == pytest.approx([0.05, 0.05, 0.3, 0.3])


def test_the_lowest_and_the_highest_lr_are_those_of_each_size():
    runs = frame({"a": {1000: {1e-3: 5.2, 1e-2: 5.0}, 4000: {3e-3: 5.1, 3e-2: 4.9}}})
    made = arms("test", runs, ["a"])
    assert values(made, "a", "loss", lr="lowest")["value"].tolist() == [5.2, 5.1]
    assert values(made, "a", "loss", lr="highest")["value"].tolist() == [5.0, 4.9]
    assert values(made, "a", "loss", lr=3e-3)["value"].tolist() == [5.1]
