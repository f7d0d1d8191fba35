import dataclasses
import html
import itertools
import json
import math
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from conf.axis import ConfigError
from tests.conftest import composer
from tests.train.helpers import trained
from train.config.compose import compose
from train.dashboard.curves import sweep_run
from train.findings.own import finding_of
from train.report import main, markdown, report
from train.results import figures
from train.results.arms import varying, with_arms
from train.results.floors import floors_text
from train.results.sweep import Metrics, SweepResults, load_sweep, row_of
from train.results.table import cells, table, titles
from train.results.trained import config_of
from train.runfolder import columns
from train.runfolder.files import write_atomically
from train.runfolder.folder import FORMAT, RunFolder

LOSS_INIT = 8.1
FLOORS = {"floor/unigram": 6.4, "floor/bigram": 4.66, "floor/no_mixing": 4.66}
LRS = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
# (final loss, largest attention logit) by LR of 400-step runs; None: diverged to NaN.
CURVES = {
    ("mini-w32-d2", "none"): [(5.885, 7.6), (5.2945, 11), (5.224, 39), (5.558, 3469), (6.443, 2e5)],
    ("mini-w32-d2", "layernorm"): [(5.906, 5), (5.297, 7.5), (5.233, 13), (5.276, 14), (5.375, 76)],
    ("mini-w64-d2", "none"): [(5.570, 9.5), (5.170, 20), (5.378, 212), (6.116, 25742), (6.372, 4e5)],
    ("mini-w64-d2", "layernorm"): [(5.564, 6), (5.138, 8.6), (5.216, 13), (5.367, 19.5), (5.460, 32)],
    ("mini-w128-d2", "none"): [(5.25, 20), (5.156, 165), (5.536, 1820), (6.170, 48590), (None, 1e6)],
    ("mini-w128-d2", "layernorm"): [(5.2, 7), (5.05, 9), (5.15, 15), (5.3, 22), (5.4, 41)],
}


def fake_run(path, config, loss, logit, state=None):
    """A run folder as a run leaves it; its loss and logits move to their final values along a smooth path."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.dump(config.values(), Dumper=yaml.CSafeDumper))
    state = state or ("finished" if loss is not None else "diverged")
    (path / "status.json").write_text(json.dumps({"format": FORMAT, "state": state}))
    if state not in ("finished", "diverged"):
        return
    width, depth = config.model.width, config.model.depth
    gains = 2 * config.model.head_dim * depth if config.qk_norm.name == "layernorm" else 0
    summary = {
        "name": path.name, "state": state, "validation/loss_init": LOSS_INIT, "validation/loss_final": loss,
        "validation/loss": LOSS_INIT if loss is None else loss, **FLOORS,
        "diverged_step": None if loss is not None else 200, "seconds": 60.0,
        "N": 12 * depth * width**2 + gains, "logit_max": logit, "logit_max_final": logit,
        "entropy_final": 2.9 / (1 + 0.3 * math.log10(logit) ** 1.5), "entropy_min": 0.5,
        "final": {"attention/block0/q_norm": 5.0},
    }  # fmt: skip
    (path / "summary.json").write_text(json.dumps(summary))
    noise, end = np.random.default_rng(len(path.name)), LOSS_INIT if loss is None else loss
    with (path / "metrics.jsonl").open("w") as file:
        for step in range(-1, config.steps):
            share = (step + 1) / config.steps
            row = {
                "step": step,
                "train/loss": end + (LOSS_INIT - end) * math.exp(-8 * share) + 0.05 * noise.standard_normal(),
            }
            if step == -1:
                row["validation/loss"] = LOSS_INIT
            elif step % 10 == 0 or step == config.steps - 1:
                for block in range(depth):
                    grown = logit ** (1 - math.exp(-6 * share)) / (1 + block)
                    row |= {
                        f"attention/block{block}/logit_max": grown,
                        f"attention/block{block}/logit_max_by_head": [grown] * config.model.heads,
                        f"attention/block{block}/q_norm": 5 * math.sqrt(1 + grown),
                        f"attention/block{block}/k_norm": 5 * math.sqrt(1 + grown),
                        f"attention/block{block}/cosine_of_max_pair": 0.9 - 0.1 * block,
                        f"attention/block{block}/entropy": 3 / (1 + math.log10(1 + grown)),
                        f"adam/block{block}/mlp.up/gradient_over_eps": 1e5 * math.exp(-5 * share),
                    }
            file.write(json.dumps(row) + "\n")


@cache
def composed(*overrides):
    return composer().config(overrides)


def fake_sweep(path, seeds=(0,), finding="qk_norm", states=None, extra=("steps=100",)):
    """A sweep folder from CURVES, seeds a hundredth of a nat apart; states, by place in the list, for unended runs."""
    runs, states = [], states or {}
    grid = itertools.product(CURVES, LRS, seeds)
    overrides = [[f"model={m}", f"qk_norm={a}", f"optimizer.lr={lr}", f"seed={s}", *extra] for (m, a), lr, s in grid]
    configs = [composed(*point) for point in overrides]
    for (model, arm), points in CURVES.items():
        for lr, (loss, logit) in zip(LRS, points, strict=True):
            for seed in seeds:
                folder = f"{model}-{arm}-lr{lr:g}-seed{seed}"
                state = states.get(len(runs))
                if state != "missing":
                    moved = None if loss is None else loss + 0.01 * seed * math.sin(1e3 * lr)
                    fake_run(path / folder, configs[len(runs)], moved, logit * (1 + 0.3 * seed), state)
                runs.append({"folder": folder, "overrides": overrides[len(runs)]})
    sweep = {"name": path.name, "finding": finding, "overrides": [], "runs": runs}
    (path / "sweep.json").write_text(json.dumps(sweep))
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "ladder"


def make(folder, **settings):
    folder.mkdir()
    return fake_sweep(folder, **settings)


def test_a_run_began_with_its_first_attempt(tmp_path, monkeypatch):
    """Whatever lies between its attempts; runs of earlier versions by time and length of their status."""
    now = 1000.0
    monkeypatch.setattr("train.runfolder.folder.time.time", lambda: now)
    run = RunFolder(tmp_path)
    run.start("text")
    now = 9000.0
    run.start("text")
    run.set_status("finished", seconds=50.0)
    assert row_of(run, None)["started"] == 1000.0
    write_atomically(tmp_path / "status.json", json.dumps({"state": "finished", "time": 500.0, "seconds": 30.0}))
    assert row_of(run, None)["started"] == 470.0


def test_a_page_of_sweeps_with_long_names_has_a_short_one(tmp_path):
    """File systems have names of 255 bytes at most."""
    for letter in "abc":
        make(tmp_path / (letter * 110))
    report(*(tmp_path / (letter * 110) for letter in "abc"))
    (page,) = (tmp_path / ("a" * 110) / "report").glob("*.html")
    assert re.fullmatch(r"a{100}-[0-9a-f]{8}\.html", page.name)


def test_tables_hold_any_name_of_an_arm(folder):
    sweep = load_sweep(make(folder))
    sweep = dataclasses.replace(sweep, runs=sweep.runs.assign(arm="<b>prose</b> | pipe"))
    heads, line, *rows = [row for row in markdown(sweep, table(sweep.runs), None).splitlines() if row[:1] == "|"]
    assert r"\<b>prose\</b> \| pipe" in rows[0]
    assert {row.replace(r"\|", "").count("|") for row in (heads, line, *rows)} == {heads.count("|")}


def test_load_sweep_gives_a_row_a_run(folder):
    sweep = load_sweep(make(folder))
    assert (sweep.name, sweep.finding, len(sweep.runs)) == ("ladder", "qk_norm", 30)
    row = sweep.runs.set_index("run").loc["mini-w64-d2-layernorm-lr0.03-seed0"]
    assert (row["optimizer.lr"], row["qk_norm.name"], row["model.name"], row["seed"]) == (
        0.03,
        "layernorm",
        "mini-w64-d2",
        0,
    )
    assert (row["validation/loss"], row["validation/loss_init"], row["logit_max"], row["state"]) == (
        5.216,
        8.1,
        13,
        "finished",
    )
    assert row["final.attention/block0/q_norm"] == 5.0
    # N counts qk-norm's gains; size is the shape's.
    assert (row["N"], row["size"]) == (98_304 + 64, 98_304)
    broke = sweep.runs.set_index("run").loc["mini-w128-d2-none-lr0.3-seed0"]
    assert (broke["validation/loss"], broke["state"], broke["ended"]) == (8.1, "diverged", True)
    assert math.isnan(broke["validation/loss_final"])


def test_history_gives_a_row_a_step(folder):
    sweep = load_sweep(str(make(folder, states={1: "missing"})))
    found = sweep.history()
    assert len(found) == 29 * 101
    assert found["run"].nunique() == 29
    assert list(found.columns[:5]) == ["run", "size", "optimizer.lr", "seed", "step"]
    name = "mini-w64-d2-layernorm-lr0.03-seed0"
    one = found[found["run"] == name].reset_index(drop=True)
    assert one["train/loss"].equals(sweep.metrics[name]["train/loss"])
    assert set(one["size"]) == {98_304}
    assert set(one["optimizer.lr"]) == {0.03}


def test_metrics_are_read_when_asked_for(folder):
    sweep = load_sweep(make(folder))
    name = "mini-w32-d2-none-lr0.1-seed0"
    rows = sweep.metrics[name]
    assert len(rows) == 101
    assert "attention/block0/logit_max" in rows
    assert "attention/block0/logit_max_by_head" not in rows
    (folder / name / "metrics.jsonl").unlink()
    assert sweep.metrics[name] is rows
    assert len(sweep.metrics) == 30


def test_unended_runs_are_listed_and_left_out(folder):
    sweep = load_sweep(make(folder, states={1: "failed", 7: "missing", 20: "running"}))
    assert sweep.left_out() == (
        "Left out, 3 of 30 runs: mini-w32-d2-none-lr0.01-seed0 (failed), "
        "mini-w32-d2-layernorm-lr0.03-seed0 (missing), mini-w128-d2-none-lr0.003-seed0 (running)"
    )
    assert len(sweep.ended) == 27
    # A run that never started is placed by its overrides.
    missing = sweep.runs.iloc[7]
    assert (missing["optimizer.lr"], missing["qk_norm.name"], missing["size"]) == (0.03, "layernorm", 24_576)
    found = table(sweep.runs).set_index(["N", "arm"])
    assert found.loc[(24_576, "qk_norm=none"), "ended"] == 4
    assert math.isnan(found.loc[(24_576, "qk_norm=none"), "lr_sensitivity"])
    assert found.loc[(98_304, "qk_norm=none"), "lr_sensitivity"] == pytest.approx(0.5512)


def test_why_a_run_failed_is_said_wherever_it_is_left_out(folder, capsys, monkeypatch):
    monkeypatch.setattr("train.report.save", lambda figure, stem: None)
    run = make(folder, finding=None, states={1: "failed"}) / "mini-w32-d2-none-lr0.01-seed0"
    RunFolder(run).set_status("failed", reason="RuntimeError: x <b>\n[red]")
    report(folder)
    why = f"{run.name} (failed: RuntimeError: x <b> [red])"
    assert f"Left out, 1 of 30 runs: {why}" in capsys.readouterr().out
    assert f"Left out, 1 of 30 runs: {why.replace('<', chr(92) + '<')}" in (folder / "report/table.md").read_text()
    assert html.escape(why) in (folder / "report/report.html").read_text()
    assert pd.read_csv(folder / "report/runs.csv")["reason"].dropna().tolist() == ["RuntimeError: x <b> [red]"]


def test_table(folder):
    found = table(load_sweep(make(folder, seeds=(0, 1))).runs).set_index(["N", "arm"])
    row = found.loc[(393_216, "qk_norm=none")]
    assert (row["runs"], row["ended"], row["diverged"], row["seeds"]) == (10, 10, 2, 2)
    # Seed 0: (5.25 + 5.156 + 5.536 + 6.17 + 8.1) / 5 - 5.156; seed 1 moves finite losses by 0.01 sin(1000 lr).
    moved = [
        5.25 + 0.01 * math.sin(3),
        5.156 + 0.01 * math.sin(10),
        5.536 + 0.01 * math.sin(30),
        6.17 + 0.01 * math.sin(100),
    ]
    seeds = [0.8864, (sum(moved) + 8.1) / 5 - moved[1]]
    assert row["lr_sensitivity"] == pytest.approx(np.mean(seeds))
    assert row["lr_sensitivity_std"] == pytest.approx(np.std(seeds, ddof=1))
    assert (row["best_lr"], row["first_degraded_lr"]) == (pytest.approx(0.01), pytest.approx(0.03))
    assert row["logit_max_at_first_degraded"] == pytest.approx(1.15 * 1820)


def test_arms_are_what_varies():
    runs = pd.DataFrame(
        {"run": list("abcd"), "size": 1, "seed": [0, 0, 1, 1], "optimizer.lr": [0.1, 0.2, 0.1, 0.2],
         "qk_norm.name": ["none", "none", "layernorm", "layernorm"], "qk_norm.eps": [None, None, 1e-6, 1e-6],
         "optimizer.weight_decay": [0.0, 1e-4, 0.0, 1e-4], "model.width": [1, 2, 3, 4], "out": list("abcd"),
         "logger.name": ["none", "wandb"] * 2, "validation/loss": [1.0, 2.0, 3.0, 4.0], "loss.name": "cross_entropy"}
    )  # fmt: skip
    # qk_norm.eps differs only because none has none.
    assert varying(runs) == ["qk_norm.name", "optimizer.weight_decay"]
    assert with_arms(runs)["arm"].tolist()[1] == "qk_norm=none, optimizer.weight_decay=0.0001"
    runs.loc[3, "qk_norm.eps"] = 1e-3
    assert "qk_norm.eps" in varying(runs)


def test_named_arms_over_a_grid_of_another_key_are_not_pooled():
    runs = pd.DataFrame(
        {"run": list("abcdef"), "size": 1, "seed": 0, "optimizer.lr": 0.1, "arm": ["plain"] * 3 + ["cap"] * 3,
         "attention.name": ["softmax"] * 3 + ["softcap"] * 3, "optimizer.beta2": [0.9, 0.99, 0.999] * 2}
    )  # fmt: skip
    assert with_arms(runs)["arm"].tolist()[1:4] == [
        "plain, optimizer.beta2=0.99", "plain, optimizer.beta2=0.999", "cap, optimizer.beta2=0.9"
    ]  # fmt: skip
    # A key that goes with the LR or with the arm tells no runs apart.
    apart = runs.assign(**{"optimizer.lr": runs["optimizer.beta2"]})
    assert with_arms(apart)["arm"].tolist() == ["plain"] * 3 + ["cap"] * 3
    shared = pd.concat([runs.iloc[[0, 3]], runs.iloc[[0]]], ignore_index=True)
    assert with_arms(shared)["arm"].tolist() == ["plain", "cap", "plain"]


def test_report_of_a_finding(folder, capsys):
    report(make(folder, seeds=(0, 1)))
    made = {p.name for p in (folder / "report").iterdir()}
    assert made == {
        "loss_and_logits_against_lr.png", "loss_and_logits_against_lr.pdf",
        "lr_sensitivity_against_size.png", "lr_sensitivity_against_size.pdf", "loss_against_lr.png",
        "loss_against_lr.pdf", "loss_and_logits_in_time.png", "loss_and_logits_in_time.pdf", "table.csv",
        "table.md", "runs.csv",
        "verdict.json", "report.html",
    }  # fmt: skip
    verdict = json.loads((folder / "report/verdict.json").read_text())
    assert verdict["state"] == "not testable at this scale"
    assert [c["passed"] for c in verdict["checks"]] == [True] * 5
    assert verdict["checks"][0]["word"] == "reproduced"
    said = capsys.readouterr().out
    assert "qk_norm: not testable at this scale (not 0.4 nats below the bigram floor (4.660)" in said
    assert "Not fit for judging: " in said
    assert "LR grid: 0.003, 0.01, 0.03, 0.1, 0.3" in said
    assert "393k  qk_norm=none       10 of 10" in said
    text = (folder / "report/table.md").read_text()
    assert "**qk_norm: not testable at this scale (not 0.4 nats below the bigram floor (4.660)" in text
    assert "LR sensitivity is lower with qk-norm at every size (decides)** | pass |" in text
    assert "| 98k | qk_norm=none | 10 of 10 |" in text
    assert "\n\nfloors: unigram 6.400, bigram 4.660 nats\n\n| N | arm |" in text
    assert "floors: unigram 6.400, bigram 4.660 nats\n" in said
    assert len(pd.read_csv(folder / "report/runs.csv")) == 60
    assert b"/FontFile2" in (folder / "report/lr_sensitivity_against_size.pdf").read_bytes()  # embedded TrueType


def test_a_report_is_no_wider_than_the_terminal(folder, capsys, monkeypatch):
    monkeypatch.setattr("train.report.save", lambda figure, stem: None)
    monkeypatch.setenv("COLUMNS", "80")
    report(make(folder, states={1: "failed"}))
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_report_with_gaps_is_incomplete(folder, capsys, monkeypatch):
    monkeypatch.setattr("train.report.save", lambda figure, stem: None)
    report(make(folder, states={1: "failed"}))
    assert json.loads((folder / "report/verdict.json").read_text())["state"] == "incomplete"
    assert "Left out, 1 of 30 runs: mini-w32-d2-none-lr0.01-seed0 (failed)" in capsys.readouterr().out
    assert (
        "- Left out, 1 of 30 runs: mini-w32-d2-none-lr0.01-seed0 (failed)" in (folder / "report/table.md").read_text()
    )


def test_report_before_any_run_ended(folder, capsys):
    report(make(folder, states=dict.fromkeys(range(30), "missing")))
    assert json.loads((folder / "report/verdict.json").read_text())["state"] == "incomplete"
    assert not list((folder / "report").glob("*.png"))


def test_a_report_lists_what_it_wrote_and_deletes_its_figures_that_are_no_longer_drawn(folder, capsys):
    report(make(folder, finding=None, extra=("steps=20",)))
    listed = "loss_against_lr.pdf, loss_against_lr.png, report.html, runs.csv, table.csv, table.md"
    assert capsys.readouterr().out.splitlines()[-1] == f"{folder / 'report'}: {listed}"
    for name in ("a+b.html", "mine.png", "report.html.999.tmp"):
        (folder / "report" / name).write_text("of others")
    for status in folder.glob("*/status.json"):
        RunFolder(status.parent).set_status("running")
    report(folder)
    assert capsys.readouterr().out.splitlines()[-1] == f"{folder / 'report'}: {listed.partition('png, ')[2]}"
    assert sorted(p.name for p in (folder / "report").iterdir() if p.suffix in (".pdf", ".png")) == ["mine.png"]


def test_a_sweep_that_conf_does_not_know_any_more(folder):
    folder.mkdir()
    runs = [{"folder": "a", "overrides": ["no.such.key=1"]}]
    (folder / "sweep.json").write_text(json.dumps({"name": "old", "finding": None, "overrides": [], "runs": runs}))
    with pytest.raises(ConfigError, match="no run has started, and the overrides"):
        load_sweep(folder)


def test_an_arm_with_a_run_of_unknown_config_has_no_lr_sensitivity(folder):
    file = make(folder, states={1: "missing", 7: "missing"}) / "sweep.json"  # at 25k: without qk-norm, with it
    sweep = json.loads(file.read_text())
    sweep["runs"][1]["overrides"] = ["attention=no_such_rule"]
    file.write_text(json.dumps(sweep))
    loaded = load_sweep(folder)
    assert "lr_sensitivity" not in table(loaded.runs)  # It may belong to any arm.
    assert sweep_run(loaded).runs["size"].notna().all()
    verdict = finding_of(loaded).verdict(loaded.runs, loaded.metrics)
    assert verdict.state == "incomplete"
    assert any("mini-w32-d2-none-lr0.01-seed0 (missing)" in note for note in verdict.notes)
    for run in sweep["runs"]:
        run["arm"] = "plain" if "-none-lr" in run["folder"] else "normed"
    file.write_text(json.dumps(sweep))
    rows = [row[:4] for row in cells(table(load_sweep(folder).runs))]
    assert [row[:3] for row in rows if row[1] == "plain"] == [
        ["25k", "plain", "4 of 5"], ["98k", "plain", "5 of 6"], ["393k", "plain", "5 of 6"],
    ]  # fmt: skip
    assert [row[:3] for row in rows if row[3] != "-"] == [["98k", "normed", "5 of 5"], ["393k", "normed", "5 of 5"]]


def test_report_without_a_finding(folder, capsys):
    report(make(folder, finding=None))
    assert {p.stem for p in (folder / "report").iterdir()} == {"loss_against_lr", "table", "runs", "report"}
    assert "reproduced" not in capsys.readouterr().out


def test_arms_have_the_names_of_the_experiment_in_every_table(folder, capsys, monkeypatch):
    saved = []
    monkeypatch.setattr("train.report.save", lambda figure, stem: saved.append(figure))
    file = make(folder, finding=None) / "sweep.json"
    sweep = json.loads(file.read_text())
    for run in sweep["runs"]:
        run["arm"] = "plain" if "-none-lr" in run["folder"] else "normed"
    file.write_text(json.dumps(sweep))
    report(folder)
    expected = [(n, arm) for n in ("25k", "98k", "393k") for arm in ("normed", "plain")]
    printed = [tuple(line.split()[:2]) for line in capsys.readouterr().out.splitlines()]
    assert [pair for pair in printed if pair in expected] == expected
    rows = [line.split("|")[1:3] for line in (folder / "report/table.md").read_text().splitlines() if line[:2] == "| "]
    assert [tuple(cell.strip() for cell in row) for row in rows] == [("N", "arm"), *expected]
    assert pd.read_csv(folder / "report/table.csv")["arm"].tolist() == [arm for _, arm in expected]
    values = json.loads(re.search(r'id="data">(.*?)</script>', (folder / "report/report.html").read_text("ascii"))[1])
    assert values["arms"] == ["plain", "normed"]
    assert {text.get_text() for text in saved[0].legends[0].get_texts()} >= {"plain", "normed"}


def test_two_sweeps_on_one_page(tmp_path, capsys):
    first, second = (make(tmp_path / name, finding=finding) for name, finding in (("a", "qk_norm"), ("b", None)))
    report(first, second)
    page = Path(capsys.readouterr().out.strip())
    assert page == first / "report/a+b.html"
    values = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text("ascii"))[1])
    alone = [load_sweep(path).runs for path in (first, second)]
    assert values["runs"]["run"] == [f"{n}/{run}" for n, runs in zip("ab", alone, strict=True) for run in runs["run"]]
    assert values["runs"]["validation/loss"] == [loss for runs in alone for loss in runs["validation/loss"]]
    assert values["arms"] == [f"{name}: qk_norm={arm}" for name in "ab" for arm in ("none", "layernorm")]
    # One verdict, that of the sweep with a finding.
    assert page.read_text("ascii").count('class="checks"') == 1
    run = first / alone[0]["run"][0]
    for paths, said in (((first, run), "is a run: name one run"), ((first, first), "is named twice")):
        with pytest.raises(ConfigError, match=said):
            report(*paths)


def test_an_arm_of_more_parameters_than_others_of_its_shape_shows_its_own_n(folder):
    made = make(folder, finding=None, extra=("steps=20",))
    for file in made.glob("mini-w32-d2-layernorm-*/summary.json"):
        summary = json.loads(file.read_text())
        file.write_text(json.dumps(summary | {"N": 3 * summary["N"]}))
    found = table(load_sweep(made).runs)
    assert found["N"].tolist()[:2] == [24_576, 24_576]
    assert [row[:2] for row in cells(found)][:3] == [
        ["74k", "qk_norm=layernorm"], ["25k", "qk_norm=none"], ["98k", "qk_norm=layernorm"],
    ]  # fmt: skip


def test_the_folder_in_which_one_stands_has_its_name_on_the_page(folder, capsys, monkeypatch):
    fake_run(folder / "mine", compose(["steps=20"]), 5.0, 30)
    monkeypatch.chdir(folder / "mine")
    monkeypatch.setattr(sys, "argv", ["report", "."])
    main()
    page = Path("report/report.html").read_text()
    assert "<title>mine" in page
    assert '"run":["mine"]' in page


def test_report_of_one_run(folder, capsys):
    folder.mkdir()
    fake_run(folder / "run", compose(["steps=50"]), 5.0, 30)
    report(folder / "run")
    assert {p.name for p in (folder / "run/report").iterdir()} == {"curves.png", "curves.pdf", "report.html"}
    (folder / "run/metrics.jsonl").unlink()
    with pytest.raises(ConfigError, match="has no metrics yet"):
        report(folder / "run")


def test_a_claim_of_ones_own_gets_a_verdict(folder, capsys, monkeypatch):
    """The shipped claim's primary check in an experiment's words; one whose threshold no effect reaches fails."""
    monkeypatch.setattr("train.report.save", lambda figure, stem: None)
    make(folder, seeds=(0, 1, 2), finding=None)
    for summary in folder.glob("*/summary.json"):  # Well below the bigram floor, so that the sweep is fit for judging.
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"floor/bigram": 6.3, "floor/no_mixing": 6.3}))
    check = {"kind": "lower", "says": "Sensitivity falls", "of": "lr_sensitivity", "arm": "layernorm", "than": "none"}
    claim = {
        "claim": "qk-norm flattens the loss",
        "arms": {"column": "qk_norm.name", "names": ["none", "layernorm"]},
        "primary": {**check, "why": "seeds differ by as much"},
        "needs_fitness": False,
        "frozen": "2020-01-01T00:00:00",
    }

    def said_of(**change):
        claim["primary"] |= change
        file = folder / "sweep.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"claim": claim}))
        report(folder)
        return capsys.readouterr().out

    for by, word in ((0.02, "reproduced"), (5.0, "not testable at this scale")):
        assert f"ladder: {word}" in said_of(by=by)
        verdict = json.loads((folder / "report/verdict.json").read_text())
        assert (verdict["finding"], verdict["state"]) == ("ladder", word)
        assert "qk-norm flattens the loss (own claim)" in (folder / "report/table.md").read_text()
    assert "no verdict: claim: arm nonne is not one of the claim's: did you mean none?" in said_of(than="nonne")


def test_a_folder_that_is_neither_is_one_line_and_exit_code_2(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report", str(folder)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error == f"error: {folder}: no such folder: give the folder of a sweep, such as runs/qk_norm\n"


def test_a_folder_that_is_no_sweep_is_named(folder):
    made = make(folder, extra=("steps=20",))
    run = next(path.parent for path in made.glob("*/summary.json"))
    for path, said in (
        (run, f"{run} is the folder of a run: give that of a sweep, or use stabilab report {run}"),
        (folder.parent, f"{folder.parent} holds sweeps and is none itself: give one of them, such as {folder}"),
    ):
        with pytest.raises(ConfigError) as fault:
            load_sweep(path)
        assert str(fault.value) == said
    with pytest.raises(ConfigError, match="is the folder of a sweep: give those of its runs"):
        config_of(folder)


def test_figures_show_the_numbers(folder):
    runs = load_sweep(make(folder, seeds=(0, 1, 2))).runs
    runs = runs.assign(arm=runs["qk_norm.name"])
    figure = figures.arms_against_lr(runs, {"layernorm": "with qk-norm", "none": "without"})
    loss, logit, _ = figure.axes
    lines = [line for line in loss.lines if line.get_linestyle() == "--"]
    assert len(lines) == 3
    assert lines[0].get_xdata() == pytest.approx(LRS)
    # Median over seeds: seed 1's, which lies between.
    assert lines[0].get_ydata()[0] == pytest.approx(5.885 + 0.01 * math.sin(3))
    assert (logit.get_xscale(), logit.get_yscale()) == ("log", "log")
    crosses = [line for line in loss.lines if line.get_marker() == "x"]
    assert sum(len(line.get_xdata()) for line in crosses) == 3
    assert {text.get_text() for text in figure.legends[0].get_texts()} >= {"N = 25k", "without", "diverged"}


def test_up_to_six_arms_are_overlaid_with_a_panel_per_size(folder):
    runs = load_sweep(make(folder)).runs
    runs = runs[runs["state"] == "finished"]
    sizes = runs["size"].nunique()
    two = runs.assign(arm=["first", "second"] * (len(runs) // 2) + ["first"] * (len(runs) % 2))
    figure = figures.loss_against_lr(two)
    assert [axes.get_title()[:3] for axes in figure.axes] == ["N ="] * sizes
    assert {text.get_text() for text in figure.legends[0].get_texts()} >= {"first", "second"}
    curves = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert len({line.get_color() for line in curves}) == len(curves) == 2
    seven = pd.concat([runs.assign(arm=f"arm {i}") for i in range(7)])
    assert [axes.get_title() for axes in figures.loss_against_lr(seven).axes] == [f"arm {i}" for i in range(7)]


def bands(axes):
    """The lowest and highest value of each band at each LR."""
    found = []
    for band in axes.collections:
        x, y = band.get_paths()[0].vertices.T
        found.append([(y[x == lr].min(), y[x == lr].max()) for lr in LRS])
    return found


def test_seeds_are_a_band_from_their_lowest_to_their_highest_value(folder):
    runs = load_sweep(make(folder, seeds=(0, 1))).runs
    runs = runs.assign(arm=runs["qk_norm.name"])
    drawn = figures.arms_against_lr(runs, {"layernorm": "with qk-norm", "none": "without"}).axes
    for axes, column in zip(drawn, ("validation/loss", "logit_max", "entropy_final"), strict=True):
        of_seeds = [group.groupby("optimizer.lr")[column] for _, group in runs.groupby(["size", "arm"])]
        expected = [list(zip(by_lr.min(), by_lr.max(), strict=True)) for by_lr in of_seeds]
        assert np.array(bands(axes)) == pytest.approx(np.array(expected))
    # By hand: the seeds of the smallest size differ by 0.01 sin(3) at the first LR, their largest logits by 1.3.
    assert bands(drawn[0])[0][0] == pytest.approx((5.906, 5.906 + 0.01 * math.sin(3)))
    assert bands(drawn[1])[0][0] == pytest.approx((5, 6.5))
    overlaid = figures.loss_against_lr(runs).axes
    assert [len(bands(axes)) for axes in overlaid] == [2, 2, 2]
    assert bands(overlaid[0])[1] == bands(drawn[0])[0]
    alone = figures.loss_against_lr(runs[runs["seed"] == 0])
    assert [bands(axes) for axes in alone.axes] == [[], [], []]


def guides(axes):
    """The label and height of each dotted line, and the text of notes at the edge."""
    levels = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"]
    return levels, [text.get_text() for text in axes.texts]


def test_the_bigram_floor_is_a_line_or_a_note(folder):
    runs = load_sweep(make(folder)).runs.assign(arm="all")
    finite = runs[runs["state"] == "finished"]
    for floor, expected in ((4.66, ([4.66], ["bigram"])), (2.5, ([], ["bigram 2.50, below"]))):
        moved = finite.assign(**{"floor/bigram": floor})
        assert guides(figures.loss_against_lr(moved).axes[0]) == expected
        assert guides(figures.arms_against_lr(moved, {"all": "all"}).axes[0]) == expected
    assert guides(figures.loss_against_lr(finite.drop(columns="floor/bigram")).axes[0]) == ([], [])
    # No line stands for runs on different tokens.
    mixed = finite.assign(**{"floor/bigram": np.linspace(4.3, 4.66, len(finite))})
    assert guides(figures.loss_against_lr(mixed).axes[0]) == ([], [])
    assert floors_text(mixed) == "floors: unigram 6.400, bigram 4.300 to 4.660 nats"


def test_bits_per_byte_stand_in_the_table(folder):
    runs = load_sweep(make(folder)).runs
    assert [row[5] for row in cells(table(runs))] == ["-"] * 6
    found = table(runs.assign(**{"validation/bits_per_byte": runs["validation/loss"] / (2 * math.log(2))}))
    assert found["best_bits_per_byte"].tolist() == pytest.approx(found["best_loss"] / (2 * math.log(2)))
    assert cells(found)[0][5] == f"{found['best_loss'].iloc[0] / (2 * math.log(2)):.3f}"


def test_accuracy_and_the_share_of_solved_runs_stand_in_a_table_of_answers(folder):
    runs = load_sweep(make(folder)).runs
    assert "accuracy" not in titles(table(runs)).values()
    # Three seeds of each run, of which one stays at guessing.
    right = (1.0, 0.992, 0.0)
    seeds = pd.concat([runs.assign(seed=seed, **{"validation/accuracy": right[seed]}) for seed in range(3)])
    found = table(seeds)
    assert found["best_accuracy"].tolist() == [0.992] * len(found)
    assert found["solved"].tolist() == pytest.approx([2 / 3] * len(found))
    shown = dict(zip(titles(found).values(), cells(found)[0], strict=True))
    assert (shown["accuracy"], shown["solved"]) == ("0.992", "67%")


@pytest.mark.parametrize(
    ("n", "text"),
    [(98_304, "98k"), (2_359_296, "2.4M"), (999_600, "1.0M"), (1.2e9, "1.2B"), (24_704, "25k"), (512, "512")],
)
def test_size_label(n, text):
    assert figures.size_label(n) == text


def test_sizes_are_told_apart_by_lightness():
    shades = figures.colours([1, 2, 3, 4, 5])
    lightness = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b, _ in shades.values()]
    assert all(a - b > 0.05 for a, b in itertools.pairwise(lightness))


def test_the_history_of_metrics_is_that_of_the_rows_and_follows_them(tmp_path):
    """Of runs that grew, were resumed, deleted or never started, and without a torn last line."""
    out, other, gone = trained(tmp_path), *(RunFolder(tmp_path / name) for name in ("other", "gone"))
    wanted = ("train/loss", "attention/logit_max", "validation/loss", "nothing", "attention/block0/logit_max_by_head")
    shutil.copytree(out.path, other.path)
    folders = {"gone": gone, "run": out, "other": other}
    runs = pd.DataFrame({"run": list(folders), "size": 1.0, "optimizer.lr": [0.1, 0.2, 0.3], "seed": 0})
    sweep = SweepResults(tmp_path, "sweep", None, runs, Metrics(folders))

    def check() -> pd.DataFrame:
        expected = pd.concat({name: columns.frame(folders[name]) for name in folders}, names=["run"]).reset_index("run")
        found = sweep.history(*wanted)
        keys = ["run", "step", *wanted[:3]]
        assert [*found] == ["run", "size", "optimizer.lr", "seed", *keys[1:]]
        pd.testing.assert_frame_equal(found[keys], expected[keys].reset_index(drop=True), check_dtype=False)
        assert (found["optimizer.lr"] == found["run"].map({"run": 0.2, "other": 0.3})).all()
        return found

    before = check()
    assert (before["run"] == "run").sum() == (before["run"] == "other").sum() == 13
    other.rewind(5)
    other.append(other.metrics_path, [{"step": 5, "train/loss": math.nan}, {"step": 6, "train/loss": -math.inf}])
    with other.metrics_path.open("a") as file:
        file.write('{"step": 7, "train/loss": 1')
    grown = check()
    assert grown["train/loss"].tolist()[-1] == -math.inf
    assert grown["step"].tolist()[-1] == 6
    shutil.rmtree(out.path)
    assert set(check()["run"]) == {"other"}
    with other.metrics_path.open("a") as file:
        file.write("\n")
    with pytest.raises(ConfigError, match="line 9 is damaged"):
        sweep.history("train/loss")
