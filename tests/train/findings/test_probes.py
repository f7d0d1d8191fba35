"""Numbers of single runs that claims are made of: the end of a probe, parts of a run, and when a loss departs."""

import math

import numpy as np
import pandas as pd
import pytest

from train.findings.probes import at_end, departure, loss_difference, window


def rows(loss, **columns):
    return pd.DataFrame({"step": range(-1, len(loss)), "train/loss": [math.nan, *loss]} | columns)


def test_the_end_is_the_last_five_watched_steps():
    """Of a probe that is its step, watched at every tenth of 100 steps; one that is not finite is none."""
    steps = np.arange(-1, 100)
    probe = np.where(steps % 10 == 0, steps, np.nan)
    assert at_end(rows([3.0] * 100, probe=probe), "probe") == np.mean([50, 60, 70, 80, 90])
    probe[91] = np.inf
    assert at_end(rows([3.0] * 100, probe=probe), "probe") == np.mean([40, 50, 60, 70, 80])
    assert math.isnan(at_end(rows([3.0] * 100), "probe"))


def test_a_window_is_a_mean_magnitude():
    steps = np.arange(-1, 100)
    found = rows([3.0] * 100, probe=-1.0 * steps)
    assert window(found, "probe", 0.2, 0.3, 100) == 25
    assert window(found, "probe", 0.0, 0.01, 100) == 0.5
    gone = rows([3.0] * 40 + [math.nan] * 60, probe=np.where(steps < 40, 1.0, np.nan))
    assert window(gone, "probe", 0.2, 0.3, 100) == 1
    assert window(gone, "probe", 0.5, 0.6, 100) == math.inf, "the run is gone by then"
    assert math.isnan(window(rows([3.0] * 100, probe=np.nan), "probe", 0.2, 0.3, 100)), "never recorded"


def departs(*parts):
    """The step at which a run departs from one of loss 3, by (steps, what its loss has on top)."""
    own = [3.0 + above for steps, above in parts for _ in range(steps)]
    return departure(loss_difference(rows(own), rows([3.0] * 100)))


@pytest.mark.parametrize(
    ("parts", "step"),
    [
        ([(100, 0.05)], None),
        ([(60, 0.0), (40, 0.2)], 60),
        ([(60, 0.0), (9, 0.2), (31, 0.0)], None),  # a spike of less than a tenth of the run
        ([(30, 0.0), (5, 0.2), (25, 0.0), (40, 0.2)], 60),
        ([(91, 0.0), (9, 0.2)], None),
        ([(60, 0.0), (2, 9.0), (38, 0.0)], None),  # smoothed away
    ],
)
def test_a_departure_lasts_a_tenth_of_the_run(parts, step):
    assert departs(*parts) == step


@pytest.mark.parametrize(
    "parts", [[(60, 0.0), (20, math.nan), (20, 0.0)], [(60, 0.0)], [(60, 0.0), (3, 0.2), (1, math.nan)]]
)
def test_a_loss_that_is_not_finite_or_that_the_run_did_not_reach_is_far(parts):
    """pandas takes infinity for missing in a running median, so that gaps have to be finite before it."""
    assert departs(*parts) == 60
