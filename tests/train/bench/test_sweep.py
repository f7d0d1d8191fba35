"""Where the time of a run goes: that all of it is counted, once, not how much it is."""

import time

import pytest

from train.bench.sweep import AROUND, WATCHED, Stopwatch, _shares, shares, throughput


def spend(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_the_innermost_part_has_the_time_and_a_watch_step_all_of_its_own() -> None:
    clock = Stopwatch()
    with clock.part("loop"):
        spend(0.02)
        clock.timed("forward", spend)(0.04)
    clock.watching = True
    with clock.part("loop"), clock.part("forward"):
        spend(0.03)
        clock.timed("validation", spend)(0.05)
    clock.take()
    expected = {"loop": 0.02, "forward": 0.04, WATCHED: 0.03, "validation": 0.05, AROUND: 0}
    assert clock.seconds == pytest.approx(expected, abs=0.01)


def test_watch_steps_are_split() -> None:
    """Nine ordinary steps of 1 s and a watch step of 1.5 s."""
    found = _shares({"forward": 6.0, "loop": 3.0, WATCHED: 1.5, AROUND: 0.5, "validation": 0.0}, 1, 10)
    expected = {"forward": 60 / 99, "loop": 30 / 99, "probes and rows": 0.5 / 11, AROUND: 0.5 / 11, "validation": 0}
    assert found == pytest.approx(expected)


def test_a_run_is_split_into_all_parts() -> None:
    found = shares(16, 120)
    assert sum(found.values()) == pytest.approx(1)
    names = ("data", "forward", "backward", "optimizer", "loop", "validation", "probes and rows")
    assert all(found[name] > 0 for name in names)


@pytest.mark.slow
def test_runs_an_hour() -> None:
    found = throughput(16, 20, 3)
    assert found["sweep / plain loop"] == pytest.approx(found["runs an hour"] / found["of the plain loop"])
    assert 10 < found["runs an hour"] < found["of the plain loop"] < 1e5
