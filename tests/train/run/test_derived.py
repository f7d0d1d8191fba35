"""What follows from a config: that a run is too short for its decay."""

from tests.conftest import composer
from train.run.derived import short_run_note


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
