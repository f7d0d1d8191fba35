"""The search on curves that are known exactly."""

import math

import pytest

from train.diagnose.search import COARSE, HIGHEST, LOWEST, Loss, bracket, curve, learning_rate, learns_nothing, wish

INIT = 5.0


def parabola(best, critical):
    """Loss against place: lowest at `best`, and 0.1 nats above that at `critical`."""
    return lambda k: Loss(2.0 + 0.1 * ((k - best) / (critical - best)) ** 2, INIT)


def searched(loss, hint=None, find_best=True):
    """Trains until nothing more is wished for, and returns what is known and the order of places."""
    known, order = {}, []
    while (asked := wish(known, hint, find_best)) is not None:
        assert not set(asked.places) & known.keys()
        known |= {k: loss(k) for k in asked.places}
        order += asked.places
    return known, order


@pytest.mark.parametrize(("best", "critical"), [(2, 9.5), (-3, 3.2), (10, 21.7), (-8, -1.5)])
def test_finds_the_critical_place_to_a_factor_of_1_19(best, critical):
    known, order = searched(parabola(best, critical))
    found = bracket(known)
    assert found.sound < critical <= found.degraded
    assert found.width == 1
    assert len(order) <= 12
    interpolated = 4 * math.log2(curve(known).critical_lr)
    assert interpolated == pytest.approx(critical, abs=1)
    assert min(known) < found.best


def test_a_hint_saves_runs():
    first, order = searched(parabola(2, 9.5))
    hinted, later = searched(parabola(2, 8.5), bracket(first), find_best=False)
    assert bracket(hinted).sound <= 8.5 < bracket(hinted).degraded
    assert len(later) < len(order)


def test_a_recipe_that_never_breaks_is_trained_to_the_end_of_the_window():
    known, _ = searched(parabola(6, 60))
    assert max(known) == HIGHEST
    assert bracket(known).degraded is None


def test_a_recipe_that_learns_nothing_is_trained_to_the_lower_end():
    known, _ = searched(lambda k: Loss(None if k > 0 else INIT + 0.1, INIT))
    assert learns_nothing(known.values())
    assert sorted(known) == [LOWEST, LOWEST // 2, *COARSE]


def test_learning_rates_have_short_names():
    assert [learning_rate(1e-2, k) for k in (-4, 0, 1, 8)] == [0.005, 0.01, 0.01189, 0.04]
