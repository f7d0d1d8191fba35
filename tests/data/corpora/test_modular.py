import math

import numpy as np
import pytest
import torch

from conf.axis import ConfigError
from data import prepare, train_batch, validation_batches
from data.batches import counted
from data.config import Position


def sequences(tokens):
    return tokens[:-1].reshape(-1, 3)


def test_the_splits_are_all_pairs_once_with_their_sums(tmp_path, config):
    found = prepare(config("modular", vocab_size=7, share=0.4), tmp_path, progress=False)
    train_S3, validation_S3 = sequences(found.train), sequences(found.validation)
    assert (len(train_S3), len(validation_S3)) == (19, 30)
    both_S3 = np.concatenate([train_S3, validation_S3]).astype(int)
    assert sorted(both_S3[:, :2].tolist()) == [[a, b] for a in range(7) for b in range(7)]
    assert (both_S3[:, 2] == (both_S3[:, 0] + both_S3[:, 1]) % 7).all()


def test_one_epoch_is_the_full_batch_and_only_sums_are_answers(tmp_path, config):
    made = config("modular")
    found = prepare(made, tmp_path, progress=False)
    assert made.train_pairs == 480
    batches = [train_batch(found.train, seed=0, step=step, batch_size=480, context=3) for step in (0, 1)]
    assert all(sorted(x[:, :-1].tolist()) == sorted(sequences(found.train).tolist()) for x in batches)
    (held_out,) = validation_batches(found.validation, batch_size=480, context=3, count=1)
    assert held_out[:, :-1].tolist() == sequences(found.validation)[:480].tolist()
    answers_N = counted(held_out[:, 1:], made.answers(held_out))
    assert torch.equal(answers_N, held_out[:, :2].sum(1) % 31)


def test_fewer_held_out_pairs_are_repeated_to_a_full_batch(tmp_path, config):
    found = prepare(config("modular", vocab_size=5, share=0.7), tmp_path, progress=False)
    train_S3, validation_S3 = sequences(found.train), sequences(found.validation)
    assert (len(train_S3), len(validation_S3)) == (17, 17)
    assert validation_S3.tolist() == (validation_S3[:8].tolist() * 3)[:17]
    assert not {tuple(row) for row in train_S3.tolist()} & {tuple(row) for row in validation_S3.tolist()}


def test_floors_are_those_of_guessing_a_sum(tmp_path, config):
    found = prepare(config("modular"), tmp_path, progress=False)
    assert found.floors == (math.log(31), math.log(31), None)


def test_every_field_changes_the_tokens(tmp_path, config):
    base = prepare(config("modular"), tmp_path, progress=False)
    for field, value in [("seed", 1), ("share", 0.4), ("vocab_size", 29)]:
        other = prepare(config("modular", **{field: value}), tmp_path, progress=False)
        assert other.folder != base.folder
        assert not np.array_equal(other.train, base.train), field


def test_chunks_resume_from_any_position(tmp_path, config):
    source = config("modular").source(tmp_path)
    ((whole, end),) = source.chunks("train", Position())
    assert (len(whole), end.tokens, list(source.chunks("train", end))) == (1441, 1441, [])
    ((rest, again),) = source.chunks("train", Position(tokens=1000))
    assert (rest.tolist(), again) == (whole[1000:].tolist(), end)


def test_a_share_of_no_pairs_is_refused(config):
    with pytest.raises(ConfigError, match=r"^share=0\.1 of 4 pairs is none: use a larger share or p$"):
        config("modular", vocab_size=2, share=0.1)
