"""The command on sweeps whose metrics follow a known law."""

import itertools
import json
import math
import sys

import pytest

from conf.axis import ConfigError
from tests.conftest import composer
from tests.train.test_report import LOSS_INIT, fake_run
from train.config.grid import compose_all
from train.forecast.__main__ import main
from train.forecast.measurements import (
    breaking_level,
    chosen_runs,
    count,
    gradient,
    logits,
    read,
    target_size,
    with_readings,
)
from train.results.sweep import load_sweep
from train.runfolder.folder import FORMAT

MODELS = ("mini-w32-d1", "mini-w32-d2", "mini-w32-d4", "mini-w64-d2", "mini-w64-d4", "mini-w256-d2")
LRS = (0.006, 0.03, 0.06)
LEARNED = 1 - math.exp(-6)
"""What fake_run's logits have reached of their largest value at the end, in log."""


def logit(n, lr):
    """A power law in N whose exponent grows with the LR: at the end of the run, 1.6M passes 1e3 from LR 0.03 on."""
    return 10 ** ((math.log10(n / 12e3) * (1.0 + 0.5 * math.log10(lr / 0.03)) + 1.5 + math.log10(lr / 0.03)) / LEARNED)


def sweep(path, models=MODELS, arms=("none",), lrs=LRS, states=None, steps=100, broken_from=3e3):
    """Runs of that law; those whose logits pass `broken_from` end a nat above the others."""
    grid = list(itertools.product(models, arms, lrs))
    overrides = [[f"model={m}", f"qk_norm={a}", f"optimizer.lr={lr}", f"steps={steps}"] for m, a, lr in grid]
    runs = []
    for place, (config, (model, arm, lr)) in enumerate(zip(map(composer().config, overrides), grid, strict=True)):
        size = 12 * config.model.depth * config.model.width**2
        largest = logit(size, lr) if arm == "none" else 20.0
        loss = 6.0 if largest**LEARNED > broken_from else 5.0
        fake_run(path / f"{model}-{arm}-{lr}", config, loss, largest, (states or {}).get(place))
        runs.append({"folder": f"{model}-{arm}-{lr}", "overrides": overrides[place]})
    (path / "sweep.json").write_text(json.dumps({"name": "law", "finding": None, "overrides": [], "runs": runs}))
    return path


@pytest.fixture
def law(tmp_path):
    (tmp_path / "law").mkdir()
    return tmp_path / "law"


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["forecast", *map(str, arguments)])
    main()


def refused(monkeypatch, capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        command(monkeypatch, *arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_a_known_law_is_forecast_16_times_further(law, monkeypatch, capsys):
    command(monkeypatch, sweep(law), "--target", "mini-w256-d2", "--at", "1")
    found = json.loads((law / "report" / "forecast.json").read_text())
    assert found["N"] == 1_574_144
    assert found["sizes"] == [12 * d * w * w for d, w in ((1, 32), (2, 32), (4, 32), (2, 64))], (
        "an eighteenth, not 197k"
    )
    logits_found = found["forecasts"]["logits"]
    assert logits_found["family"] in ("quadratic", "line", "theil-sen", "surface"), "a plane can't turn with the LR"
    for row in logits_found["learning_rates"]:
        expected = logit(found["N"], row["lr"]) ** LEARNED
        assert row["value"] == pytest.approx(expected, rel=1e-6)
        assert row["passes"]["1000.0"] == pytest.approx(float(expected > 1e3), abs=1e-3)
        # The fake run has N without the norms' few parameters.
        assert row["measured"] == pytest.approx([logit(12 * 2 * 256**2, row["lr"]) ** LEARNED])
        at = row["crossing"]["1000.0"]["n"]
        if at is not None:
            assert logit(at, row["lr"]) ** LEARNED == pytest.approx(1e3, rel=0.02)
    assert [row["broken"] for row in logits_found["learning_rates"]] == [[False], [True], [True]]
    flat = found["forecasts"]["gradient"]["learning_rates"][0]
    assert flat["value"] == pytest.approx(flat["measured"][0], rel=1e-6)
    assert flat["crossing"]["1.0"]["n"] is None
    said = capsys.readouterr().out
    assert "N = 1.6M" in said
    assert "forecast.png" in said
    assert {p.name for p in (law / "report").iterdir()} == {"forecast.json", "forecast.png", "forecast.pdf"}


def test_the_backtest_of_a_known_law_is_right(law, monkeypatch, capsys):
    command(monkeypatch, sweep(law), "--backtest", "--at", "1", "--threshold", "1e3")
    found = json.loads((law / "report" / "forecast_backtest.json").read_text())
    *_, total = found["scores"]["logits"]
    # From 3, 4 and 5 sizes: 3, 2 and 1 larger ones, at three LRs.
    assert (total["trials"], total["runs"]) == (18, 9)
    assert total["error"] < 1e-6
    assert total["error_by_family"]["plane"] > 0.01
    assert total["error_last"] > 0.3
    assert (total["hits"]["1000.0"], total["hits_last"]["1000.0"] < 1) == (1, True)
    assert "backtest" in capsys.readouterr().out


def test_a_backtest_counts_what_the_seen_runs_could_not_tell(law, monkeypatch):
    """No run of the first sizes breaks: that later ones do is missed, by the forecast and by its baseline."""
    command(monkeypatch, sweep(law, broken_from=4e3), "--backtest", "--at", "1")
    trials = json.loads((law / "report" / "forecast_backtest.json").read_text())["trials"]["logits"]
    assert any(t["broken"] for t in trials)
    assert [t["breaks"] for t in trials if t["cut"] < 5e4] == [None] * 9
    first = json.loads((law / "report" / "forecast_backtest.json").read_text())["scores"]["logits"][-1]
    assert first["break_hits"] < 1


def test_where_in_the_run_logits_are_read(law):
    found = load_sweep(sweep(law, models=MODELS[:1], lrs=LRS[:1]))
    rows = found.metrics[found.runs["run"][0]]
    column = rows.set_index("step")["attention/block0/logit_max"]
    for at, step in ((0.1, 10), (0.13, 10), (0.17, 20), (0.5, 50), (1.0, 99), (0.01, 0)):
        assert read(logits(at, [1e3]), rows, 100, at) == column[step]
    assert math.isnan(read(logits(0.5, [1e3]), rows[rows["step"] < 30], 100, 0.5)), "diverged before it"
    assert math.isnan(read(logits(0.5, [1e3]), rows.drop(columns=column.name), 100, 0.5))


def test_gradients_are_averaged_over_the_last_tenth(law):
    found = load_sweep(sweep(law, models=MODELS[:1], lrs=LRS[:1], steps=200))
    rows = found.metrics[found.runs["run"][0]]
    own = rows.set_index("step")["adam/block0/mlp.up/gradient_over_eps"]
    expected = (own[180] + own[190] + own[199]) / 3
    assert read(gradient(), rows, 200, 0.1) == pytest.approx(expected)
    assert math.isnan(read(gradient(), rows[rows["step"] < 180], 200, 0.1))


def test_the_level_that_tells_runs_that_broke(law):
    runs = with_readings(load_sweep(sweep(law)), load_sweep(law).runs, [logits(1.0, [1e3])], 1.0)
    broke = runs["logits"] > 3e3
    assert runs["broken"].tolist() == broke.tolist()
    level = breaking_level(runs, "logits")
    assert level == pytest.approx(math.sqrt(runs["logits"][~broke].max() * runs["logits"][broke].min()))
    assert breaking_level(runs[~broke], "logits") is None
    assert breaking_level(runs[broke], "logits") is None
    # One run on the wrong side moves the level less than it would have to move to be right.
    runs.loc[runs["logits"].idxmin(), "broken"] = True
    assert breaking_level(runs, "logits") == level


def test_the_arm_without_qk_norm_is_taken_and_said(law):
    sweep(law, arms=("none", "layernorm"))
    none, notes = chosen_runs(load_sweep(law), [])
    assert "qk_norm=none" in notes[0]
    other, _ = chosen_runs(load_sweep(law), ["qk_norm=layernorm"])
    assert (set(none["qk_norm.name"]), set(other["qk_norm.name"])) == ({"none"}, {"layernorm"})
    with pytest.raises(ConfigError, match="qk_norm=rms matches no run; known: layernorm, none"):
        chosen_runs(load_sweep(law), ["qk_norm=rms"])
    with pytest.raises(ConfigError, match="--where step=5 is not KEY=VALUE"):
        chosen_runs(load_sweep(law), ["step=5"])


def test_a_target_is_a_model_or_a_number(law):
    found = load_sweep(sweep(law, models=MODELS[:1]))
    assert target_size(found, found.runs, "mini-w128-d2") == 393_856, "as trained: 12 depth width^2 and the norms"
    assert target_size(found, found.runs, "1.8M") == pytest.approx(1.8e6)
    assert target_size(found, found.runs, "2e9") == 2e9
    assert target_size(found, found.runs, "250k") == 250e3
    with pytest.raises(ConfigError, match=r"--target mini-w96 is neither .* did you mean mini-w96-d7\?"):
        target_size(found, found.runs, "mini-w96")


def test_a_targets_size_is_that_of_its_architecture(law):
    """SwiGLU has three matrices in place of two, of 8/3 the width in place of four."""
    plain, gated = compose_all([["mlp=gelu", "qk_norm=none"], ["mlp=swiglu", "qk_norm=none"]])
    shared = 4 * 128**2 * 2 + 128 * 5
    assert count(plain, "mini-w128-d2") == shared + 2 * 2 * 128 * 512
    assert count(gated, "mini-w128-d2") == shared + 2 * 3 * 128 * 341


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--target", "mini-w128-d2"], "this sweep has 2 (of 12k, "),
        (["--target", "99M", "--threshold", "0"], "argument --threshold"),
        (["--target", "99M", "--at", "0"], "argument --at"),
        (["--target", "99M", "--factor", "1"], "argument --factor"),
        (["--target", "huge"], "--target huge is neither a model"),
        (["--target", "99M", "--where", "mlp"], "--where mlp is not KEY=VALUE"),
        ([], "one of the arguments --target --backtest is required"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(law, monkeypatch, capsys, arguments, line):
    assert line in refused(monkeypatch, capsys, sweep(law, models=MODELS[:3], lrs=LRS[:1]), *arguments)
    assert not (law / "report").exists()


def test_a_folder_without_a_sweep_and_too_few_sizes(law, monkeypatch, capsys):
    assert "neither a sweep folder" in refused(monkeypatch, capsys, law, "--backtest")
    sweep(law, models=MODELS[:3])
    assert "this sweep has 3 (12k, 25k, 49k)" in refused(monkeypatch, capsys, law, "--backtest")
    sweep_of_two = law.parent / "two"
    sweep_of_two.mkdir()
    error = refused(monkeypatch, capsys, sweep(sweep_of_two, models=MODELS[:2]), "--target", "99M")
    assert "a forecast needs 3 sizes" in error
    assert "this sweep has 2 (of 12k, 25k): train more sizes" in error


def test_runs_without_the_metric_are_left_out_and_counted(law, monkeypatch, capsys):
    """A run that diverged before its logits are read has no point; it broke all the same."""
    sweep(law)
    path = law / "mini-w64-d2-none-0.06"
    rows = [line for line in (path / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] < 40]
    (path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    (path / "status.json").write_text(json.dumps({"format": FORMAT, "state": "diverged"}))
    summary = json.loads((path / "summary.json").read_text()) | {
        "validation/loss_final": None,
        "validation/loss": LOSS_INIT,
    }
    (path / "summary.json").write_text(json.dumps(summary))
    command(monkeypatch, law, "--target", "mini-w256-d2", "--at", "0.5")
    said = capsys.readouterr().out
    assert "left out 1 of 18 runs without logits at 0.5 of the run" in said
    assert "12 runs, 1 of them broke" in said
