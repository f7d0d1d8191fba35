import math

import numpy as np
import pytest
import torch

from conf.axis import ConfigError
from data import prepare, train_batch, validation_batches
from data.batches import counted
from data.config import Position
from data.corpora import recall
from data.corpora.recall import draw
from data.rng import frozen_random

SMALL = {"sequences": 300, "validation_sequences": 40}


def rows(config, count=2000, **values):
    made = config("recall", **values)
    return made, draw(made, count, frozen_random(7))


@pytest.mark.parametrize("values", [{}, {"pairs": 16}, {"vocab_size": 20, "length": 24, "pairs": 6}, {"power_a": 1.0}])
def test_each_query_is_a_key_and_its_answer_that_key_s_value(config, values):
    made, tokens_ST = rows(config, **values)
    half, pairs = made.vocab_size // 2, made.pairs
    assert tokens_ST.shape == (2000, made.length)
    answers_ST = made.answers(torch.from_numpy(np.pad(tokens_ST, ((0, 0), (0, 1))))).numpy()
    assert (answers_ST.sum(1) == pairs).all()
    assert not answers_ST[:, -1].any(), "the last target is of the next sequence"
    for sequence, answers in zip(tokens_ST.tolist(), answers_ST, strict=True):
        value_of = dict(zip(sequence[: 2 * pairs : 2], sequence[1 : 2 * pairs : 2], strict=True))
        assert len(value_of) == len(set(value_of.values())) == pairs
        assert max(value_of) < half <= min(value_of.values())
        queries = np.flatnonzero(answers).tolist()
        assert [sequence[t + 1] for t in queries] == [value_of[sequence[t]] for t in queries]
        assert sorted(sequence[t] for t in queries) == sorted(value_of)
        assert sorted(token for token in sequence if token < half) == sorted([*value_of] * 2)


@pytest.mark.parametrize("power_a", [0.01, 1.0])
def test_places_follow_the_power_law(config, power_a):
    """The first key's query is the first draw: its distance g has probability ~ g^(a - 1)."""
    made, tokens_ST = rows(config, 40_000, power_a=power_a)
    places = (tokens_ST[:, 8:] == tokens_ST[:, :1]).argmax(1) // 2
    expected = np.arange(1.0, 29.0) ** (power_a - 1)
    expected /= expected.sum()
    found = np.bincount(places, minlength=28) / len(places)
    assert np.abs(found - expected).max() < 4 * math.sqrt(expected.max() / len(places))
    assert made.length == 8 + 2 * 28


def test_keys_values_and_the_rest_are_uniform(config):
    made, tokens_ST = rows(config, 40_000)
    counts = np.bincount(tokens_ST.ravel(), minlength=256)
    assert counts[:128].sum() == 40_000 * 2 * made.pairs
    for half in (counts[:128], counts[128:]):
        assert np.abs(half / half.mean() - 1).max() < 6 / math.sqrt(half.mean())


def test_floors_are_those_of_guessing_a_value(tmp_path, config):
    found = prepare(config("recall", **SMALL), tmp_path, progress=False)
    assert found.floors == (math.log(128), math.log(128), None)
    assert found.floors.summary["floor/no_mixing"] == pytest.approx(4.852, abs=1e-3)
    assert (found.vocab_size, found.eos, found.bytes_per_token) == (256, None, None)
    fewer = prepare(config("recall", **SMALL, vocab_size=64), tmp_path, progress=False)
    assert fewer.floors.bigram == math.log(32)


def test_batches_are_whole_sequences_and_a_split_has_them_all(tmp_path, config):
    made = config("recall", **SMALL)
    found = prepare(made, tmp_path, progress=False)
    assert (len(found.train), len(found.validation)) == (300 * 64 + 1, 40 * 64 + 1)
    train_ST, validation_ST = found.train[:-1].reshape(-1, 64), found.validation[:-1].reshape(-1, 64)
    epoch = torch.cat([train_batch(found.train, seed=0, step=s, batch_size=30, context=64) for s in range(10)])
    assert sorted(epoch[:, :-1].tolist()) == sorted(train_ST.tolist())
    held_out = torch.cat(list(validation_batches(found.validation, batch_size=8, context=64, count=5)))
    assert held_out[:, :-1].tolist() == validation_ST.tolist()
    assert counted(held_out[:, 1:], made.answers(held_out)).shape == (160,)
    assert not {tuple(row) for row in train_ST.tolist()} & {tuple(row) for row in validation_ST.tolist()}


def test_every_field_changes_the_tokens(tmp_path, config):
    base = prepare(config("recall", **SMALL), tmp_path, progress=False)
    for field, value in [("seed", 1), ("pairs", 5), ("power_a", 1.0), ("vocab_size", 128), ("length", 32)]:
        other = prepare(config("recall", **SMALL | {field: value}), tmp_path, progress=False)
        assert other.folder != base.folder
        assert not np.array_equal(other.train, base.train), field
    for field, split in (("sequences", "train"), ("validation_sequences", "validation")):
        longer = prepare(config("recall", **SMALL | {field: 301}), tmp_path, progress=False)
        assert len(getattr(longer, split)) == 301 * 64 + 1
        short = getattr(base, split)
        assert np.array_equal(getattr(longer, split)[: len(short)], short)
    again = prepare(config("recall", **SMALL), tmp_path / "other", progress=False)
    assert (again.train.tobytes(), again.folder.name) == (base.train.tobytes(), base.folder.name)


def test_chunks_resume_from_any_position(tmp_path, config, monkeypatch):
    monkeypatch.setattr(recall, "CHUNK", 100)
    source = config("recall", **SMALL | {"sequences": 250}).source(tmp_path)
    whole = list(source.chunks("train", Position()))
    assert [len(tokens) for tokens, _ in whole] == [6400, 6400, 3201]
    for i, (_, position) in enumerate(whole):
        rest = list(source.chunks("train", position))
        assert [p for _, p in rest] == [p for _, p in whole[i + 1 :]]
        assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(rest, whole[i + 1 :], strict=True))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"pairs": 17}, "pairs=17 do not fit length=64 and vocab_size=256, which take 16: use fewer pairs"),
        ({"vocab_size": 8, "pairs": 5}, "pairs=5 do not fit length=64 and vocab_size=8, which take 4"),
        ({"vocab_size": 255}, "vocab_size=255 has no two halves: use an even number"),
        ({"length": 63}, "length=63 has no whole number of pairs: use an even number"),
        ({"power_a": 0.0}, "power_a=0.0: "),
    ],
)
def test_refusals(config, values, said):
    with pytest.raises(ConfigError) as fault:
        config("recall", **values)
    assert str(fault.value).startswith(said)
    assert "\n" not in str(fault.value)
