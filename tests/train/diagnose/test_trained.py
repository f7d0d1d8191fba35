"""Cards of trained sweeps whose losses and metrics follow a known law, and how often forecasts in them are right."""

import itertools
import json
import math
import sys

import pytest

from tests.conftest import composer
from tests.train.test_report import LOSS_INIT, fake_run
from train.diagnose.__main__ import main
from train.diagnose.backtest import markdown
from train.diagnose.build import build
from train.diagnose.card import AtSize, Interval
from train.diagnose.probes import table
from train.diagnose.trained import arms
from train.findings.probes import auc_error
from train.forecast.measurements import breaking_level, gradient, logits, read, told_apart
from train.results.sweep import load_sweep
from train.runfolder.folder import FORMAT

MODELS = ("mini-w32-d1", "mini-w32-d2", "mini-w32-d4", "mini-w64-d2", "mini-w64-d4", "mini-w256-d2")
SIZES = {"mini-w32-d1": 12_288, "mini-w32-d2": 24_576, "mini-w32-d4": 49_152, "mini-w64-d2": 98_304}
LRS = (0.006, 0.03, 0.06)
LEARNED = 1 - math.exp(-6 * 0.11)
"""What fake_run's logits have reached of their largest value at step 10 of 100, in log."""
BROKEN_FROM = 150.0


def read_logit(n, lr):
    """Block 0's largest logit at a tenth of the run: a power law in N whose exponent grows with the LR."""
    return 10 ** (math.log10(n / 12e3) * (1.0 + 0.5 * math.log10(lr / 0.03)) + 1.0 + math.log10(lr / 0.03))


def sweep(path, models=MODELS, named=("none",), lrs=LRS, states=None, steps=100):
    """Runs of that law; those whose logits pass BROKEN_FROM end a nat above the others. qk-norm keeps logits at 20."""
    grid = list(itertools.product(models, named, lrs))
    overrides = [[f"model={m}", f"qk_norm={a}", f"optimizer.lr={lr}", f"steps={steps}"] for m, a, lr in grid]
    runs = []
    for place, (config, (model, arm, lr)) in enumerate(zip(map(composer().config, overrides), grid, strict=True)):
        seen = read_logit(12 * config.model.depth * config.model.width**2, lr) if arm == "none" else 2.0
        loss = 5.0 + (seen > BROKEN_FROM) + 0.01 * (lr != LRS[0])
        fake_run(path / f"{model}-{arm}-{lr}", config, loss, seen ** (1 / LEARNED), (states or {}).get(place))
        runs.append({"folder": f"{model}-{arm}-{lr}", "overrides": overrides[place]})
    (path / "sweep.json").write_text(json.dumps({"name": "law", "finding": None, "overrides": [], "runs": runs}))
    return path


@pytest.fixture
def law(tmp_path):
    (tmp_path / "law").mkdir()
    return tmp_path / "law"


def command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["diagnose", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_a_known_law_of_logits_is_forecast_and_held_against_the_target_s_own_runs(law, monkeypatch, capsys):
    assert command(monkeypatch, sweep(law), "--target", "mini-w256-d2") == 0
    said = capsys.readouterr().out
    (card,) = json.loads((law / "report" / "card.json").read_text())["cards"]
    ahead = card["probes"]["forecasts"]["logits"]
    assert ahead["family"] in ("quadratic", "line", "theil-sen", "surface"), "a plane can't turn with the LR"
    n = card["forecast"]["n"]
    assert n == 1_574_144, "as trained: 12 depth width^2 and the norms"
    for row in ahead["learning_rates"]:
        expected = read_logit(n, row["lr"])
        assert row["value"] == pytest.approx(expected, rel=1e-6)
        assert row["passes"]["1000.0"] == pytest.approx(float(expected > 1e3), abs=1e-3)
        # The fake run has N without the norms' few parameters.
        assert row["measured"] == pytest.approx([read_logit(12 * 2 * 256**2, row["lr"])])
        at = row["crossing"]["1000.0"]["n"]
        if at is not None:
            assert read_logit(at, row["lr"]) == pytest.approx(1e3, rel=0.02)
    assert [row["broken"] for row in ahead["learning_rates"]] == [[False], [True], [True]]
    flat = card["probes"]["forecasts"]["gradient"]["learning_rates"][0]
    assert flat["value"] == pytest.approx(flat["measured"][0], rel=1e-6)
    assert flat["crossing"]["1.0"]["n"] is None
    below = [read_logit(n, lr) for n in SIZES.values() for lr in LRS] + [read_logit(196_608, lr) for lr in LRS]
    level = card["probes"]["breaking_level"]
    assert max(v for v in below if v <= BROKEN_FROM) < level < min(v for v in below if v > BROKEN_FROM)
    assert f"passes {level:.3g} (above which runs broke) at LR" in said.replace("\n", " ").replace("  ", " ")
    # The critical LR of the target's own runs stands beside the forecast from the five smaller sizes.
    assert card["forecast"]["measured"]["critical"]["value"] == pytest.approx(card["sizes"][-1]["critical"]["value"])
    assert card["forecast"]["factor"] == pytest.approx(1_574_144 / 196_608)
    assert "measured there: critical LR" in said
    files = {p.name for p in (law / "report").iterdir()}
    assert files == {"card.json", "card.png", "card.pdf", "card.html", "forecast.png", "forecast.pdf"}
    assert (law / "report" / "card.html").read_text().count("data:image/png") == 2


def test_arms_are_recipes_and_compared_with_the_first(law, monkeypatch, capsys):
    sweep(law, models=MODELS[1:4], named=("none", "layernorm"))
    assert command(monkeypatch, law) == 0
    made = json.loads((law / "report" / "card.json").read_text())
    none, normed = made["cards"]
    assert [at["verdict"] for at in normed["sizes"]] == ["never breaks"] * 3
    # The logits at LR 0.06 are 46, 102 and 225: the largest size breaks alone.
    assert [at["verdict"] for at in none["sizes"]] == ["never breaks", "never breaks", "breaks"]
    (found,) = made["comparisons"]
    assert (found["name"], found["bound"], found["pairs"]) == ("qk_norm=layernorm", "at least", 1)
    critical = none["sizes"][2]["critical"]["value"]
    assert found["factor"]["value"] == pytest.approx(0.06 / critical)
    assert 0.03 < critical < 0.06
    assert command(monkeypatch, law, "--arm", "qk_norm=layernorm") == 0
    assert "qk_norm=none" not in capsys.readouterr().out.rpartition("Stability")[2]


def test_the_backtest_of_a_known_law_is_right(law, monkeypatch, capsys):
    assert command(monkeypatch, sweep(law), "--backtest") == 0
    (probes,) = json.loads((law / "report" / "backtest.json").read_text())["probes"].values()
    *_, total = probes["logits"]["scores"]
    # From 3, 4 and 5 sizes: 3, 2 and 1 larger ones, at three LRs.
    assert (total["trials"], total["runs"]) == (18, 9)
    assert total["error"] < 1e-6
    assert total["error_by_family"]["plane"] > 0.01
    assert total["error_last"] > 0.3
    assert (total["hits"]["1000.0"], total["hits_last"]["1000.0"] < 1) == (1, True)
    said = capsys.readouterr().out
    assert said == (law / "report" / "backtest.md").read_text() + "\n" + said.splitlines()[-1] + "\n"
    assert "| mean absolute error, log10 (no change) | 0.00 (" in said


def test_a_backtest_counts_what_the_seen_runs_could_not_tell(law, monkeypatch):
    """No run of the first sizes breaks, and few of the next: whether later ones do is forecast of neither."""
    command(monkeypatch, sweep(law), "--backtest")
    (probes,) = json.loads((law / "report" / "backtest.json").read_text())["probes"].values()
    trials = probes["logits"]["trials"]
    assert any(t["broken"] for t in trials)
    assert [t["breaks"] for t in trials if t["cut"] < 5e4] == [None] * 9
    total = probes["logits"]["scores"][-1]
    assert (total["decided"], total["trials"]) == (sum(t["breaks"] is not None for t in trials), 18)
    assert 0 < total["decided"] < 9
    assert total["broken"] == sum(t["broken"] for t in trials if t["breaks"] is not None)
    assert all(t["breaks"] is None for t in probes["gradient"]["trials"])


def test_where_in_the_run_logits_are_read(law):
    found = load_sweep(sweep(law, models=MODELS[:1], lrs=LRS[:1]))
    rows = found.metrics[found.runs["run"][0]]
    column = rows.set_index("step")["attention/block0/logit_max"]
    for at, step in ((0.1, 10), (0.13, 10), (0.17, 20), (0.5, 50), (1.0, 99), (0.01, 0)):
        assert read(logits(at), rows, 100) == column[step]
    assert math.isnan(read(logits(0.5), rows[rows["step"] < 30], 100)), "diverged before it"
    assert math.isnan(read(logits(0.5), rows.drop(columns=column.name), 100))


def test_gradients_are_averaged_over_the_last_tenth(law):
    found = load_sweep(sweep(law, models=MODELS[:1], lrs=LRS[:1], steps=200))
    rows = found.metrics[found.runs["run"][0]]
    own = rows.set_index("step")["adam/block0/mlp.up/gradient_over_eps"]
    expected = (own[180] + own[190] + own[199]) / 3
    assert read(gradient(), rows, 200) == pytest.approx(expected)
    assert math.isnan(read(gradient(), rows[rows["step"] < 180], 200))


def test_the_level_that_tells_runs_that_broke(law):
    (found,) = arms(sweep(law), [])
    runs = table(found)
    broke = runs["logits"] > BROKEN_FROM
    assert runs["broken"].tolist() == broke.tolist()
    level = breaking_level(runs, "logits")
    assert level == pytest.approx(math.sqrt(runs["logits"][~broke].max() * runs["logits"][broke].min()))
    assert told_apart(runs, "logits") == level
    assert breaking_level(runs[~broke], "logits") is None
    assert breaking_level(runs[broke], "logits") is None
    # One run on the wrong side moves the level less than it would have to move to be right.
    runs.loc[runs["logits"].idxmin(), "broken"] = True
    assert breaking_level(runs, "logits") == level
    # Logits of runs that break for other reasons say nothing: no level.
    runs["broken"] = [i % 2 == 0 for i in range(len(runs))]
    assert told_apart(runs, "logits") is None


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--target", "huge"], "--target huge is neither a model"),
        (["--target", "mini-w96"], "did you mean mini-w96-d7?"),
        (["--arm", "qk_norm=rms"], "--arm 'qk_norm=rms' is no arm of"),
        (["--backtest"], "a backtest needs three sizes with critical LRs, or four sizes at the same LRs"),
        (["--why"], "--why asks for training, but the runs of a sweep are only read"),
        (["--against", "qk_norm=none"], "--against asks for training"),
        (["--budget", "3"], "--budget asks for training"),
        (["qk_norm=none"], "give overrides (KEY=VALUE), or the folder of a trained sweep and no more"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(law, monkeypatch, capsys, arguments, line):
    assert command(monkeypatch, sweep(law, models=MODELS[:3], lrs=LRS[:1]), *arguments) == 2
    assert line in capsys.readouterr().err
    assert not (law / "report").exists()


def test_folders_that_are_none_and_arms_without_a_sweep(law, monkeypatch, capsys):
    (law / "empty").mkdir()
    sweep(law, models=MODELS[:1], lrs=LRS[:1], states={0: "running"})
    for words, line in (
        ([law / "empty"], "neither a sweep folder"),
        ([law / "nothing"], "is neither an override (KEY=VALUE) nor the folder of a trained sweep"),
        (["--arm", "a"], "--arm chooses arms of a trained sweep"),
        ([law], "a card needs runs that have ended"),
    ):
        assert command(monkeypatch, *words) == 2
        assert line in capsys.readouterr().err


def test_runs_at_one_lr_have_no_curve_but_a_forecast_of_logits(law, monkeypatch, capsys):
    assert command(monkeypatch, sweep(law, models=MODELS[:4], lrs=LRS[:1]), "--target", "99M") == 0
    (card,) = json.loads((law / "report" / "card.json").read_text())["cards"]
    assert [at["verdict"] for at in card["sizes"]] == ["unknown"] * 4
    assert card["notes"][0] == f"runs at one LR alone, which are no curve, at {', '.join(MODELS[:4])}"
    (row,) = card["probes"]["forecasts"]["logits"]["learning_rates"]
    assert row["value"] == pytest.approx(read_logit(99e6, LRS[0]), rel=1e-6)


def test_few_sizes_have_a_card_without_a_forecast_of_logits(law):
    (found,) = arms(sweep(law, models=MODELS[1:3]), [])
    card = build(found, "99M")
    assert card.probes.found == ()
    assert any("forecast from 3 sizes on; 2 below the target" in note for note in card.notes)
    assert card.forecast.n == 99e6


def test_a_run_that_diverged_before_its_logits_are_read_has_no_point_and_broke(law):
    sweep(law, steps=1000)
    path = law / "mini-w64-d2-none-0.06"
    rows = [line for line in (path / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] < 40]
    (path / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    (path / "status.json").write_text(json.dumps({"format": FORMAT, "state": "diverged"}))
    own = json.loads((path / "summary.json").read_text())
    own |= {"validation/loss_final": None, "validation/loss": LOSS_INIT}
    (path / "summary.json").write_text(json.dumps(own))
    runs = table(arms(law, [])[0])
    (one,) = runs[(runs["size"] == 98_304) & (runs["optimizer.lr"] == 0.06)].to_dict("records")
    assert one["broken"]
    assert math.isnan(one["logits"])
    assert len(runs) == 18


def test_runs_without_a_result_are_said_and_the_window_is_theirs_too(law):
    sweep(law, models=MODELS[1:4], states={2: "failed", 5: "running"})
    (found,) = arms(law, [])
    assert found.notes == ("2 of 9 runs have no result, at LR 0.06: its curves are without them",)
    assert found.top == 0.06
    assert [at.verdict for at in build(found, None).sizes] == ["open", "open", "breaks"]


def test_an_arm_without_a_size_leaves_its_cell_empty():
    at = {
        "both": [AtSize("w32", 1e4, "never breaks"), AtSize("w64", 4e4, "breaks", critical=Interval(0.05))],
        "one": [AtSize("w64", 4e4, "breaks", critical=Interval(0.07))],
    }
    said = markdown([], at, [])
    assert "| both | never breaks | 0.05 |" in said
    assert "| one | - | 0.07 |" in said
    assert "Of 3 recipes at a size: 1 never breaks, 2 breaks." in said


def test_few_runs_told_apart_perfectly_prove_no_perfect_probe():
    assert auc_error(1.0, 1, 1) > 0.3
    assert auc_error(1.0, 15, 21) < 0.01
    assert auc_error(0.8, 20, 20) == pytest.approx(0.0705, abs=2e-3)
