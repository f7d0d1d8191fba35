import numpy as np
import pytest

from data.config import Position
from data.corpora.oscillation import CHUNK, coefficients, stretch
from data.rng import frozen_random


def values(config, **fields):
    """Returns the centres of the bins of a stretch, in standard deviations."""
    made = config("oscillation", **({"vocab_size": 4096} | fields))
    return made, (stretch(made, frozen_random(7)) + 0.5) / made.vocab_size * 8 - 4


@pytest.mark.parametrize(("period", "radius"), [(16.0, 0.97), (5.0, 0.8), (8.0, 0.0)])
def test_the_values_are_an_autoregression_of_variance_one(config, period, radius):
    made, x_T = values(config, period=period, radius=radius)
    assert x_T.var() == pytest.approx(1, rel=0.06)
    one, two, noise = coefficients(made)
    lags = np.stack([x_T[1:-1], x_T[:-2]])
    found, *_ = np.linalg.lstsq(lags.T, x_T[2:], rcond=None)
    assert found == pytest.approx([one, two], abs=0.02)
    assert (x_T[2:] - found @ lags).std() == pytest.approx(noise, rel=0.02)


def test_the_autocorrelation_turns_with_the_period(config):
    _, x_T = values(config, period=16.0, radius=0.97)
    half, whole = (float(np.mean(x_T[lag:] * x_T[:-lag])) for lag in (8, 16))
    assert half == pytest.approx(-(0.97**8), abs=0.05)
    assert whole == pytest.approx(0.97**16, abs=0.05)


def test_bins_are_in_order_and_cover_the_values(config):
    few, many = (stretch(config("oscillation", vocab_size=v), frozen_random(7)) for v in (8, 64))
    assert (many // 8 == few).all()
    assert set(few.tolist()) == set(range(8))


def test_chunks_continue_from_any_position(config):
    source = config("oscillation", tokens=CHUNK + 100, validation_tokens=50).source(None)
    (first, middle), (rest, end) = source.chunks("train", Position())
    assert (len(first), len(rest), end.tokens) == (CHUNK, 100, CHUNK + 100)
    again = list(source.chunks("train", middle))
    assert len(again) == 1
    assert (again[0][0] == rest).all()
    ((validation, _),) = source.chunks("validation", Position())
    assert len(validation) == 50
    assert (validation != first[:50]).any()
