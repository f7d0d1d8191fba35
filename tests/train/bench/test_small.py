"""The cost of small steps: that the figures are there and belong to each other, not how large they are."""

import pytest

from train.bench.small import SMALL_TARGETS, WATCH, step_ratios


def test_all_figures_of_the_steps() -> None:
    found = step_ratios(16, 2 * WATCH + 1)
    assert found["run / bare"] == pytest.approx(found["run step, s"] / found["bare step, s"])
    assert found["bare / reference"] == pytest.approx(found["bare step, s"] / found["reference step, s"])
    assert min(found.values()) > 0
    assert found.keys() >= SMALL_TARGETS.keys() - {"start of a run, s"}
