"""What follows from a config: that a run is too short for its decay."""

import math

import pytest

from tests.conftest import composer
from tests.train.helpers import TINY
from train.run.derived import bits_per_byte, flops_per_token, short_run_note, speed, tokens_per_step, values_in_force


def note(*overrides: str) -> str | None:
    return short_run_note(composer().config(list(overrides)))


def test_a_run_too_short_for_its_decay_is_told() -> None:
    assert note() is None
    assert note("steps=2000") is None
    assert note("steps=1000") is not None
    assert note("steps=200") == (
        "note: optimizer.decay_times_steps=10 over 200 steps removes 5.0% of the weights per step, and LR 0.01 can't "
        "keep up: a trial this short learns little; try optimizer.decay_times_steps=1"
    )
    for fine in (
        "optimizer.decay_times_steps=1",
        "optimizer.weight_decay=0",
        "optimizer.decay=coupled",
        "optimizer.lr=0.1",
    ):
        assert note("steps=200", fine) is None


def test_flops_and_speed_by_hand() -> None:
    """6 N + 12 L d T + 6 V d: 6 x 1000 + 12 x 2 x 16 x 16 + 6 x 64 x 16."""
    config = composer().config(TINY)
    assert flops_per_token(config, 1000) == 6000 + 6144 + 6144
    assert tokens_per_step(config) == 8 * 16
    assert speed(config, 1000, 640, 5.0) == {
        "train/tokens_per_second": 128.0,
        "train/flops_per_second": 128.0 * 18_288,
    }
    assert all(math.isnan(value) for value in speed(config, 1000, 640, 0.0).values())


def test_bits_per_byte_by_hand() -> None:
    """Four bits a token of 2.5 bytes."""
    assert bits_per_byte(4 * math.log(2), 2.5) == {"validation/bits_per_byte": pytest.approx(1.6)}
    assert bits_per_byte(3.0, None) == {}


def test_values_in_force_by_hand() -> None:
    given = ["accumulate=2", "devices=2", "nodes=2", "batch_size=64", "steps=200", "schedule.final_fraction=0.1"]
    found = values_in_force(composer().config([*TINY, *given]))
    assert (found["devices"], found["micro_batch_size"]) == (2, 64 // 8)
    assert found["schedule"] == {"warmup_steps": 10, "last_lr": pytest.approx(0.1 * 0.01)}
