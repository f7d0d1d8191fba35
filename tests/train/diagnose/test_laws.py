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


def test_intervals_of_80_percent_hold_what_they_say():
    """Of forecasts of 16 times the largest size, in data that follow a law with noise."""
    draw, held = np.random.default_rng(0), 0
    n = np.repeat([25e3, 99e3, 393e3], 2)
    for _ in range(1000):
        found = law(n, -0.2 * np.log(n) + 0.1 * draw.standard_normal(6))
        low, high = ends(found.at(6.3e6))
        held += low < math.exp(-0.2 * math.log(6.3e6) + 0.1 * draw.standard_normal()) < high
    assert 0.77 < held / 1000 < 0.83


def test_values_scatter_at_least_by_the_width_of_their_brackets():
    n = [1e4, 1e5, 1e6]
    found = law(n, [math.log(x**-0.2) for x in n], reading=0.1)
    spread = 2 * math.log(10) ** 2
    assert found.exponent.error == pytest.approx(0.1 / math.sqrt(spread))
    assert found.at(1e7).error == pytest.approx(0.1 * math.sqrt(1 + 1 / 3 + math.log(100) ** 2 / spread))


def test_intervals_hold_for_values_read_from_brackets():
    """Of noise below the brackets' width, a factor of 1.19: the truth of a size is held at least as often as said."""
    draw, held, width = np.random.default_rng(0), 0, math.log(2) / 4
    n = np.repeat([25e3, 99e3, 393e3], 2)
    for _ in range(1000):
        start = draw.uniform(0, width)
        true = start - 0.25 * np.log(n) + 0.01 * draw.standard_normal(6)
        read = np.floor(true / width) * width + width / 2
        low, high = ends(law(n, read, width / math.sqrt(12)).at(6.3e6))
        held += low < math.exp(start - 0.25 * math.log(6.3e6)) < high
    assert held / 1000 > 0.8
