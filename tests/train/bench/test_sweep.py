"""Where the time of a run goes: that all of it is counted, once, not how much it is."""

import pytest

from train.bench.sweep import AROUND, WATCHED, Stopwatch, _shares, shares, throughput


def test_the_innermost_part_has_the_time_and_a_watch_step_all_of_its_own_but_validation(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("train.bench.sweep.time.process_time", lambda: now[0])

    def spend(seconds: float) -> None:
        now[0] += seconds

    clock = Stopwatch()
    with clock.part("loop"):
        spend(2)
        clock.timed("forward", spend)(4)
    clock.watching = True
    with clock.part("loop"), clock.part("forward"):
        spend(3)
        clock.timed("validation", spend)(5)
    clock.take()
    assert clock.seconds == {AROUND: 0, "loop": 2, "forward": 4, WATCHED: 3, "validation": 5}


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
    assert min(found.values()) > 0
