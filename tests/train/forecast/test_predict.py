"""Where a target passes a level: at which N, with which chance, and at which LR."""

import math

import numpy as np
import pytest

from train.forecast.fits import Points
from train.forecast.measurements import gradient, logits
from train.forecast.predict import beyond, predict

LRS = (0.01, 0.1)


def seen(slope: float) -> Points:
    """Five sizes of a power law with noise; ten times as large at ten times the LR."""
    n, lr = (grid.ravel() for grid in np.meshgrid(np.log10([1e4, 3e4, 1e5, 3e5, 1e6]), np.log10(LRS)))
    noise = 0.03 * np.random.default_rng(0).standard_normal(len(n))
    return Points(n, lr, 1.0 + slope * (n - 4) + (lr + 2) + noise)


@pytest.mark.parametrize(("quantity", "slope", "level"), [(logits(), 1.0, 1e3), (gradient(), -1.0, 1.0)])
def test_crossings_are_where_the_chance_of_trouble_passes_5_50_and_95_percent(quantity, slope, level):
    found = predict(quantity, seen(slope), 1e7)
    for row in found.rows:
        at = row.crossing[level]
        assert at.low < at.n < at.high
        for n, chance in ((at.low, 0.05), (at.n, 0.5), (at.high, 0.95)):
            assert beyond(quantity, found.model, math.log10(n), math.log10(row.lr), level) == pytest.approx(
                chance, abs=0.01
            )
        assert (row.passes[level] > 0.5) == ((row.value > level) == quantity.rises)
        assert row.low < row.value < row.high


def test_the_lr_at_which_the_target_reaches_a_level_lies_on_the_line_between_two():
    found = predict(logits(), seen(1.0), 1e7)
    low, high = (row.value for row in found.rows)
    level = math.sqrt(low * high)
    assert found.lr_crossing(level) == pytest.approx(math.sqrt(LRS[0] * LRS[1]))
    assert found.lr_crossing(high * 1.01) is None
