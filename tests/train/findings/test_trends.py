import math

import numpy as np
import pytest

from tests.train.findings.frames import bowl, frame
from train.findings.arms import arms, optimal_lr
from train.findings.trends import LEAST_ERROR, Value, all_of, best_loss, mean, optimum, slope, spread

LRS = (1e-3, 1e-2, 1e-1, 1.0)


def sweep(losses, **more):
    return arms("f", frame({"a": {100: losses}}, **more), ["a"])


def test_values_carry_their_errors():
    difference = Value(3.0, 0.3) - Value(1.0, 0.4)
    assert difference.numbers() == {"value": 2.0, "error": pytest.approx(0.5)}
    assert (difference.above(0.9), difference.above(1.1), difference.above(3.5)) == (True, None, False)
    assert (difference.below(3.1), difference.below(2.9), difference.below(0.5)) == (True, None, False)
    assert Value(2.0, 0.1).log().numbers() == {"value": pytest.approx(math.log(2)), "error": pytest.approx(0.05)}
    assert abs(Value(-2.0, 0.1)).value == 2.0
    assert all_of([True, None, False]) is False
    assert all_of([True, None]) is all_of([]) is None
    assert all_of([True, True]) is True


def test_slope_and_its_error():
    line = slope({0.0: Value(1.0, 0.1), 1.0: Value(3.0, 0.1), 2.0: Value(5.0, 0.1)})
    # Weights -1/2, 0, 1/2.
    assert line.numbers() == {"value": pytest.approx(2.0), "error": pytest.approx(0.1 / 2**0.5)}
    assert slope({0.0: Value(1.0, 0.1)}) is None


def test_spread_over_seeds():
    runs = frame({"a": {100: bowl(LRS, 3e-2, 5.0), 200: bowl(LRS, 3e-2, 4.0)}}, seeds=(0, 1))
    found = arms(
        "f",
        runs.assign(
            **{"validation/loss_final": runs["validation/loss_final"] + 0.1 * runs["seed"] * (runs["size"] == 100)}
        ),
        ["a"],
    )
    # Sample variances 0.005 and 0.
    assert spread(found, best_loss) == pytest.approx(0.05)
    assert mean(found, found.curves[100, "a"], best_loss).error == pytest.approx(0.05 / 2**0.5)
    assert spread(sweep(bowl(LRS, 3e-2, 5.0)), best_loss) is None
    assert mean(sweep(bowl(LRS, 3e-2, 5.0)), found.curves[200, "a"], best_loss).error == LEAST_ERROR


def test_optimum_and_its_error():
    found = sweep(bowl(LRS, 2e-2, 5.0, rise=0.05))
    value = optimum(found, found.curves[100, "a"])
    assert math.exp(value.value) == pytest.approx(2e-2) == pytest.approx(optimal_lr(found.curves[100, "a"]))
    # The same losses with normal noise of that size, many times.
    random, lows = np.random.default_rng(0), []
    x = np.log(LRS[:3])
    for _ in range(4000):
        y = 0.05 * (x - math.log(2e-2)) ** 2 + LEAST_ERROR * random.standard_normal(3)
        a, b, _ = np.polyfit(x, y, 2)
        lows.append(-b / (2 * a))
    assert value.error == pytest.approx(np.std(lows), rel=0.05)


def test_no_optimum_at_an_edge_or_on_a_plain():
    for losses in (bowl(LRS, 1e-4, 5.0), bowl(LRS, 10, 5.0), dict.fromkeys(LRS, 5.0)):
        found = sweep(losses)
        assert optimum(found, found.curves[100, "a"]) is None
