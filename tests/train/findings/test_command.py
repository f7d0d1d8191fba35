"""`stabilab findings`, its list, and the verdicts that the documentation collects from the same sweeps."""

import json
import os
import subprocess
import sys
from datetime import datetime

import pandas as pd
import pytest

from conf.axis import ConfigError
from tests.train.test_report import fake_sweep
from train.docs import collect as collecting
from train.docs.collect import entry
from train.docs.findings import results, scoreboard, table, verdicts
from train.findings.__main__ import chosen, work
from train.findings.base import all_findings
from train.findings.status import state
from train.report import write_report
from train.results.sweep import load_sweep


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Two sweeps: one judged, one of which a run has not ended."""
    parent = tmp_path_factory.mktemp("findings")
    for name, states in (("qk_norm", None), ("gradient_rms", {1: "missing"})):
        (parent / name).mkdir()
        fake_sweep(parent / name, states=states, finding=name)
    write_report(load_sweep(parent / "qk_norm"))
    return parent


def test_groups_and_names():
    assert [f.name for f in chosen(["all"])] == list(all_findings())
    for group, held in (("headline", {"headline"}), ("core", {"headline", "core"}), ("long", {"long"})):
        assert [f.name for f in chosen([group])] == [f.name for f in all_findings().values() if f.group in held] != []
    assert "muparam" not in {f.name for f in chosen(["core"])}
    assert [f.name for f in chosen(["steps", "qk_norm", "steps"])] == ["steps", "qk_norm"]
    with pytest.raises(ConfigError, match="finding=qk_nrom is not known: did you mean qk_norm"):
        chosen(["qk_nrom"])


def test_state(out):
    judged = state(out / "qk_norm")
    assert (judged["state"], judged["ended"], judged["runs"]) == ("not testable at this scale", 30, 30)
    open_ = state(out / "gradient_rms")
    assert (open_["state"], open_["ended"], open_["judged"]) == ("not judged", 29, None)
    assert state(out / "steps") == {}


def test_list(out, capsys):
    assert work([], [f"out={out}"]) == 0
    shown = capsys.readouterr().out
    others = [
        entry for name, entry in verdicts().items() if entry["judged"] and name not in ("qk_norm", "gradient_rms")
    ]
    words = [entry["state"] for entry in others]
    assert len(words) == shown.count(", shipped") > 3
    not_run = len(all_findings()) - 2 - len(words)
    assert f"{words.count('not testable at this scale') + 1} not testable at this scale, 1 not judged" in shown
    assert f"{words.count('reproduced')} reproduced" in shown
    assert f"{not_run} not run" in shown


def test_collected_verdicts_make_the_pages(out):
    found = {name: entry(out / name) for name in ("qk_norm", "gradient_rms")}
    rows = {line.split("`")[1]: line for line in table(found).splitlines()[2:]}
    assert list(rows) == list(all_findings())
    today = datetime.now().date()
    assert f"| **not testable at this scale**, 1 of 5 checks | 25k to 393k | 0 | - | {today} |" in rows["qk_norm"]
    assert "LR sensitivity is lower with qk-norm at every size: holds at 0 of 3: N=25k" in rows["qk_norm"]
    assert "| not judged |" in rows["gradient_rms"]
    assert "| not run |" in rows["steps"]
    text = results(found)
    assert "## qk_norm\n\n**Not testable at this scale (not 0.4 nats below the bigram floor (4.660)" in text
    assert "![loss and logits against lr](results/qk_norm.png)" in text
    assert (
        f"| **all {len(all_findings())}** | **0** | **0** | **0** | **1** | **0** | **{len(all_findings()) - 2}** |"
        in scoreboard(found)
    )
    assert "Of their 5 checks 1 pass, 4 are open and 0 fail." in scoreboard(found)


def test_the_verdicts_in_git_are_of_findings_that_exist():
    assert [name for name in all_findings() if name in verdicts()] == list(verdicts())


def test_collecting_keeps_what_the_folder_does_not_have(out, tmp_path, monkeypatch):
    known = {
        name: entry(out / "gradient_rms") | {"judged": "2026-01-01"} for name in ("qk_norm", "gradient_rms", "steps")
    }
    for name in ("verdicts.json", "leaderboard.csv"):
        (tmp_path / name).write_text("")
    pictures = tmp_path / "results"
    pictures.mkdir()
    (pictures / "qk_norm.png").write_bytes(b"old")
    monkeypatch.setattr(collecting, "verdicts", lambda: known)
    monkeypatch.setattr(collecting, "VERDICTS", tmp_path / "verdicts.json")
    monkeypatch.setattr(collecting, "RESULTS", pictures)
    monkeypatch.setattr(collecting, "RUNS", tmp_path / "runs.csv.gz")
    monkeypatch.setattr(collecting, "TABLES", {"leaderboard_attention": tmp_path / "leaderboard.csv"})
    assert collecting.collect(out) == [
        tmp_path / name for name in ("verdicts.json", "runs.csv.gz", "results/qk_norm.png")
    ]
    assert len(pd.read_csv(tmp_path / "runs.csv.gz")) == 30
    written = json.loads((tmp_path / "verdicts.json").read_text())
    changed = {name for name in known if written[name] != known[name]}
    assert changed == {"qk_norm"}, "the sweep of gradient_rms is not judged yet"
    assert [p.name for p in pictures.iterdir()] == ["qk_norm.png"]
    assert (pictures / "qk_norm.png").read_bytes() == (
        out / "qk_norm/report/loss_and_logits_against_lr.png"
    ).read_bytes()
    with pytest.raises(ConfigError, match="is not a folder"):
        collecting.collect(tmp_path / "none")


def test_a_second_draw_is_kept_beside_a_verdict_whose_runs_are_elsewhere(tmp_path, monkeypatch):
    """Draws of other seeds stay too, and one that was judged again has its last word."""
    for place in ("VERDICTS", "RUNS"):
        monkeypatch.setattr(collecting, place, tmp_path / getattr(collecting, place).name)
    drawn = tmp_path / "runs" / "qk_norm-seed"
    drawn.mkdir(parents=True)
    write_report(load_sweep(fake_sweep(drawn, seeds=(40,), finding="qk_norm")))
    sizes = "N 25k to 393k"
    before = [f"textmix, seeds 7, {sizes}: partly", f"textmix, seeds 40, {sizes}: partly"]
    shipped = entry(drawn) | {"again": before}
    monkeypatch.setattr(collecting, "verdicts", lambda: {"qk_norm": shipped})
    collecting.collect(tmp_path / "runs")
    found = json.loads((tmp_path / "verdicts.json").read_text())["qk_norm"]
    assert found | {"again": before} == shipped
    assert found["again"] == [f"textmix, seeds 40, {sizes}: not testable at this scale", before[0]]


@pytest.mark.parametrize(
    ("words", "said"), [(["train.findings"], "qk_norm"), (["train", "--help", "attention"], "Veli?kovi?")]
)
def test_a_locale_without_utf_8_shows_what_it_can(tmp_path, words, said):
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", *words, *([] if "--help" in words else [f"out={tmp_path}"])]
    done = subprocess.run(command, env=os.environ | plain, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout
