"""The cost of every choice of the axes: that all are in the table, not how long they take."""

import json

import pytest

from conf.axis import ConfigError, axes
from tests.train.helpers import TINY, tiny, trained
from train.bench import axes as module
from train.bench import report as bench
from train.bench.__main__ import main
from train.bench.axes import LIMIT, OPTIONS, Cost, Steps, measure_axes, values
from train.config.schema import Config

TRAINING = {axis: list(a.choices) for axis, a in axes(Config).items() if axis not in ("data", "launcher", "logger")}


@pytest.mark.parametrize("only", [["norm", "placement"], pytest.param([], marks=pytest.mark.slow)], ids=["two", "all"])
def test_every_choice_of_an_axis_is_measured(only: list[str]) -> None:
    assert values() == TRAINING | OPTIONS
    seen: list[Cost] = []
    seconds, costs = measure_axes(TINY, steps=1, rounds=1, only=only, report=seen.append)
    assert seconds > 0
    assert seen == costs
    assert [(c.axis, c.value) for c in costs] == [(a, v) for a, choices in values(only).items() for v in choices]
    for cost in costs:
        assert not cost.refused, f"COMPANIONS lacks what {cost.axis}={cost.value} needs: {cost.refused}"
        assert (cost.ratio or 0) > 0


def test_a_choice_that_does_not_fit_is_listed_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    clash = [*TINY, "embedding_norm=true"]
    monkeypatch.setattr(module, "values", lambda only: {"norm": ["none", "rmsnorm"]})
    monkeypatch.setattr(module, "COMPANIONS", {"norm=none": ["embedding_norm=false"]})
    costs = {c.value: c for c in measure_axes(clash, steps=1, rounds=1, only=["norm"])[1]}
    assert costs["none"].companions == ["embedding_norm=false"]
    assert costs["none"].ratio is not None
    monkeypatch.setattr(module, "COMPANIONS", {})
    costs = {c.value: c for c in measure_axes(clash, steps=1, rounds=1, only=["norm"])[1]}
    assert costs["none"].ratio is None
    assert "embedding_norm=true" in costs["none"].refused
    assert costs["rmsnorm"].ratio is not None


def test_an_axis_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^axis norms is not measured: did you mean norm\?$"):
        values(["norms"])


def test_steps_by_hand_are_those_of_a_run(tmp_path) -> None:
    """The same rows to the bit, but for the probes of the watch steps, the first and the last."""
    config = tiny("watch_every=1000", "loss=tempnet")
    by_hand = Steps(config)
    for _ in range(config.steps):
        by_hand.step()
    rows = trained(tmp_path, "watch_every=1000", "loss=tempnet").metrics()[1:]
    assert by_hand.module.recorder.flush() == [{key: row[key] for key in rows[1]} for row in rows]


def test_the_table_marks_what_is_dear(capsys: pytest.CaptureFixture[str]) -> None:
    costs = [
        {"axis": "norm", "value": "a", "companions": [], "ratio": 1.2, "refused": ""},
        {"axis": "norm", "value": "b", "companions": ["x=y"], "ratio": LIMIT + 0.1, "refused": ""},
        {"axis": "norm", "value": "c", "companions": [], "ratio": None, "refused": "no"},
    ]
    bench.show_axes({"mini-w64-d2": {"step_seconds": 0.04, "axes": costs}}, ["mini-w64-d2"])
    a, b, c = (line for line in capsys.readouterr().out.splitlines() if "norm" in line)
    assert "1.20" in a
    assert ">" not in a
    assert all(text in b for text in ("1.60", "> 1.5", "with x=y"))
    assert "refused: no" in c


def test_command(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "axes.json"
    command = ["bench", "--axes", "mlp", "--models", "mini-w32-d2", "--steps", "1", "--rounds", "1", "--out", str(out)]
    monkeypatch.setattr("sys.argv", command)
    main()
    figures = json.loads(out.read_text())["mini-w32-d2"]
    assert [row["value"] for row in figures["axes"]] == TRAINING["mlp"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in TRAINING["mlp"])
