import numpy as np
import pytest

from data import DataError, prepare
from data.config import Position
from data.corpora.synthetic import STEPS, STRETCHES, language, segment
from data.rng import frozen_random


@pytest.mark.parametrize(("exponent", "sigma"), [(1.0, 3.0), (0.0, 1.0), (1.3, 4.0)])
def test_the_stationary_distribution_is_zipf(exponent, sigma):
    chain = language(300, exponent, sigma, seed=1)
    zipf = np.arange(1, 301) ** -exponent
    zipf /= zipf.sum()
    assert np.abs(chain.pi_V - zipf).max() < 1e-15
    assert np.abs(zipf @ chain.P_VV - zipf).max() < 1e-9
    assert np.abs(chain.P_VV.sum(1) - 1).max() < 1e-12
    # Independent of the construction: rows of a high power of the transition matrix are the stationary distribution.
    assert np.abs(np.linalg.matrix_power(chain.P_VV, 1 << 14)[7] - zipf).max() < 1e-9


def test_entropies():
    independent = language(64, 1.0, 0.0, seed=0)
    assert independent.entropy_rate == pytest.approx(independent.unigram_entropy, abs=1e-12)
    assert language(64, 0.0, 0.0, seed=0).unigram_entropy == pytest.approx(np.log(64), abs=1e-12)
    rates = [language(64, 1.0, sigma, seed=0).entropy_rate for sigma in (0, 1, 2, 3)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] - rates[-1] > 1


def test_a_segment_is_the_sequential_chain():
    chain, uniform_TC = language(50, 1.0, 3.0, seed=2), frozen_random(3).random_sample((30, 40))
    expected, token = [], np.array([9])
    for u in uniform_TC.T.ravel():
        token = np.array([np.searchsorted(np.cumsum(chain.P_VV[token[0]]), u, side="right")])
        expected.append(int(token[0]))
    assert segment(chain, 9, uniform_TC).tolist() == expected


def test_the_true_model_reaches_the_entropy_rate(tmp_path, config):
    settings = config("synthetic", tokens=1_000_000, validation_tokens=300_000, seed=4)
    found = prepare(settings, tmp_path, progress=False)
    chain = language(512, 1.0, 3.0, seed=4)
    for tokens in (found.train, found.validation):
        loss = -np.log(chain.P_VV[tokens[:-1], tokens[1:]]).mean()
        assert loss == pytest.approx(found.floors.bigram, rel=5e-3)
        counts = np.bincount(tokens, minlength=512) / len(tokens)
        entropy = -(counts[counts > 0] * np.log(counts[counts > 0])).sum()
        assert entropy == pytest.approx(found.floors.unigram, rel=5e-3)
    assert (len(found.train), len(found.validation)) == (1_000_000, 300_000)
    assert found.floors.bigram == chain.entropy_rate
    assert found.floors.unigram - found.floors.bigram > 1
    assert (found.vocab_size, found.eos, found.bytes_per_token) == (512, None, None)
    assert not np.array_equal(found.train[:1000], found.validation[:1000])
    with pytest.raises(DataError, match="data=synthetic has no tokenizer"):
        found.tokenizer()


def test_every_field_changes_the_tokens(tmp_path, config):
    small = {"tokens": 3000, "validation_tokens": 500, "vocab_size": 40}
    base = prepare(config("synthetic", **small), tmp_path, progress=False)
    for field, value in [("seed", 1), ("sigma", 1.0), ("zipf_exponent", 0.5), ("vocab_size", 41)]:
        other = prepare(config("synthetic", **small | {field: value}), tmp_path, progress=False)
        assert other.folder != base.folder
        assert not np.array_equal(other.train, base.train), field
    longer = prepare(config("synthetic", **small | {"tokens": 3001}), tmp_path, progress=False)
    assert np.array_equal(longer.train[:3000], base.train)
    again = prepare(config("synthetic", **small), tmp_path / "other", progress=False)
    assert (again.train.tobytes(), again.folder.name) == (base.train.tobytes(), base.folder.name)


def test_chunks_resume_from_any_position(tmp_path, config):
    source = config("synthetic", tokens=2 * STRETCHES * STEPS + 99, vocab_size=40).source(tmp_path)
    whole = list(source.chunks("train", Position()))
    assert [len(tokens) for tokens, _ in whole] == [STRETCHES * STEPS, STRETCHES * STEPS, 99]
    for i, (_, position) in enumerate(whole):
        rest = list(source.chunks("train", position))
        assert [p for _, p in rest] == [p for _, p in whole[i + 1 :]]
        assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(rest, whole[i + 1 :], strict=True))
