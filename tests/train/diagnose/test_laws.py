"""Laws through points that are known exactly, and through noise of known size."""

import math

import numpy as np
import pytest

from train.diagnose.laws import ends, law


def test_an_exact_power_law_is_extrapolated_exactly():
    n = [1e4, 1e5, 4e5]
    found = law(n, [math.log(0.3 * x**-0.25) for x in n])
    assert found.exponent.value == pytest.approx(-0.25)
    assert math.exp(found.at(1e7).value) == pytest.approx(0.3 * 1e7**-0.25)
    assert found.at(1e7).error == pytest.approx(0, abs=1e-6)


def test_one_size_is_no_law_and_two_have_no_interval():
    assert law([1e4, 1e4], [0.0, 0.1]) is None
    two = law([1e4, 1e6], [0.0, -1.0])
    assert two.at(1e8).value == pytest.approx(-2.0)
    assert ends(two.at(1e8)) is None


def held(draws, of_size, noise, freedom, sizes=3, factor=16, scatter=0.0):
    """Share of 80 % intervals at `factor` times the largest N that hold the truth there.

    `of_size` reads a size's log critical LR; sizes `scatter` around a law of N^-0.2.
    """
    draw, found = np.random.default_rng(0), 0
    n = 25e3 * 4.0 ** np.arange(sizes)
    ahead = factor * n[-1]
    for _ in range(draws):
        true, there = (-0.2 * np.log(x) + scatter * draw.standard_normal(np.shape(x)) for x in (n, ahead))
        low, high = ends(law(n, of_size(draw, true), noise, freedom).at(ahead))
        found += low < math.exp(there) < high
    return found / draws


def test_intervals_of_80_percent_hold_what_they_say():
    """With sizes that scatter and no other noise."""
    assert 0.77 < held(1000, lambda draw, true: true, 0.0, 0, scatter=0.1) < 0.83


def test_intervals_hold_where_the_noise_is_larger_and_where_the_scatter_is():
    def seen(draw, true):
        return true + 0.05 * draw.standard_normal(len(true))

    for scatter, sizes in ((0.0, 3), (0.25, 3), (0.25, 4), (0.0, 2)):
        assert held(1000, seen, 0.05, 30, sizes, scatter=scatter) > 0.75, (scatter, sizes)
    # Nothing tells that two sizes scatter.
    assert held(1000, seen, 0.05, 30, sizes=2, scatter=0.25) < 0.5


def test_values_scatter_at_least_by_their_noise():
    n = [1e4, 1e5, 1e6]
    spread = 2 * math.log(10) ** 2
    for freedom, expected in ((0, 1), (5, 5)):
        found = law(n, [math.log(x**-0.2) for x in n], 0.1, freedom)
        assert found.exponent.error == pytest.approx(0.1 / math.sqrt(spread))
        assert found.exponent.freedom == expected
        assert found.at(1e7).error == pytest.approx(0.1 * math.sqrt(1 + 1 / 3 + math.log(100) ** 2 / spread))


def test_intervals_hold_for_values_read_from_brackets():
    """Of a recipe that breaks hard, so that its readings lie a tenth up the brackets, a factor of 1.19 or 2.2."""
    for factor in (1.19, 2.2):
        width = math.log(factor)

        def read(draw, true, width=width):
            seeds = true + draw.uniform(0, width) + 0.03 * draw.standard_normal((2, len(true)))
            return (np.floor(seeds / width) * width + 0.1 * width).mean(0)

        noise = math.sqrt(0.03**2 / 2 + width**2 / 12 + (0.4 * width) ** 2)
        assert held(500, read, noise, 3) > 0.8
