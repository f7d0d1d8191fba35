"""Lists, compares and deletes runs that were trained for real."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conf.axis import ConfigError
from tests.train.helpers import TINY, call, swept, tiny, trained
from tests.train.test_report import fake_run
from train.cli.tables import cut
from train.results.comparison import differences
from train.results.listing import column, condition, rows_in


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provides three ended runs outside of sweeps."""
    where = tmp_path_factory.mktemp("runs") / "runs"
    trained(where)
    trained(where, "seed=1", "optimizer.lr=0.03")
    trained(where, "seed=1", "attention=sigmoid")
    return where


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        ([], [0, 1, 1]),
        (["seed=1"], [1, 1]),
        (["s=1", "attention=sig*"], [1]),
        (["lr>=0.03"], [1]),
        (["attention!=softmax,linear"], [1]),
        (["loss<0"], None),
        (["N>1000", "state=finished,diverged", "seed=0"], [0]),
    ],
)
def test_lists_what_fulfils_all_conditions(kept, capsys, monkeypatch, words, seeds):
    code, said = call(["train.runs", str(kept), *words, "--json", "--sort", "seed"], capsys, monkeypatch)
    if seeds is None:
        assert code == 2
        assert "none of 3 runs has loss<0" in said
    else:
        assert code == 0
        assert [run["seed"] for run in json.loads(said)] == seeds


def test_keys_are_columns_axes_short_forms_or_last_parts(kept):
    rows = rows_in([kept])
    found = [column(key, rows) for key in ("attention", "lr", "loss", "width", "entropy_min", "optimizer.beta1")]
    assert found == [
        "attention.name",
        "optimizer.lr",
        "validation/loss",
        "model.width",
        "entropy_min",
        "optimizer.beta1",
    ]
    with pytest.raises(ConfigError, match="unknown key optimiser: did you mean optimizer"):
        column("optimiser", rows)
    with pytest.raises(ConfigError, match=r"lr<fast: < needs a number"):
        condition("lr<fast", rows)


def test_a_table_of_80_columns_has_lines_of_80_columns(kept, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, said = call(["train.runs", str(kept)], capsys, monkeypatch)
    assert code == 0
    table = said.splitlines()
    assert len(table) == 1 + 3 + 1
    assert max(map(len, table)) <= 80
    hashes = [path.name[-8:] for path in kept.iterdir()]
    assert all(any(digest in line for line in table) for digest in hashes), "a cut name keeps its hash"
    assert "max logit" in table[0]
    monkeypatch.setenv("COLUMNS", "60")
    code, said = call(["train.runs", str(kept)], capsys, monkeypatch)
    assert said.splitlines()[0].split() == ["run", "state", "loss", "LR"]
    monkeypatch.setenv("COLUMNS", "30")
    code, said = call(["train.runs", str(kept)], capsys, monkeypatch)
    assert sum(line.startswith("loss") for line in said.splitlines()) == 3, "stacked"


@pytest.mark.parametrize(("room", "expected"), [(30, "mini-w64-d2-qk_none-1a2b3c4d"), (20, "mini-w6…one-1a2b3c4d")])
def test_cut(room, expected):
    assert cut("mini-w64-d2-qk_none-1a2b3c4d", room) == expected


def test_says_why_a_run_has_no_result(tmp_path, capsys, monkeypatch):
    run = trained(tmp_path, "steps=2", "watch_every=1")
    run.set_status("failed", reason="RuntimeError: out of memory")
    said = call(["train.runs", str(tmp_path), "state=failed"], capsys, monkeypatch)[1]
    assert said.splitlines()[1].split(maxsplit=6)[-1].strip().endswith("RuntimeError: out of memory")
    said = call(["train.runs", str(tmp_path), "--json"], capsys, monkeypatch)[1]
    assert json.loads(said)[0]["reason"] == "RuntimeError: out of memory"


def test_compares_runs(kept, capsys, monkeypatch):
    first, second = (next(kept.glob(f"*-lr{lr}-*")) for lr in ("0.01-s0", "0.03-s1"))
    a, b = rows_in([first]), rows_in([second])
    assert differences(a, b) == [["optimizer.lr", "0.01", "0.03"], ["seed", "0", "1"]]
    code, said = call(["train.runs", "compare", str(first), str(second)], capsys, monkeypatch)
    assert code == 0
    losses = [row[0]["validation/loss"] for row in (a, b)]
    line = next(line.split() for line in said.splitlines() if line.startswith("validation loss"))
    assert line[2:] == [f"{losses[0]:.3f}", f"{losses[1]:.3f}", f"{losses[1] - losses[0]:+.3f}"]


def test_compares_sweeps_and_deletes_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert swept(*TINY, "optimizer.lr=1e-2,2e-2", "out=runs", "name=one") == 0
    assert swept(*TINY, "optimizer.lr=1e-2,2e-2", "attention=sigmoid", "out=runs", "name=two") == 0
    capsys.readouterr()
    code, said = call(["train.runs", "compare", "one", "two"], capsys, monkeypatch)
    assert code == 0
    lines = [line.split() for line in said.splitlines()]
    assert ["attention", "softmax", "sigmoid"] in lines
    points = {line[2]: line[3:] for line in lines if line[2:3] in (["0.01"], ["0.02"])}
    losses = {row["optimizer.lr"]: row["validation/loss"] for row in rows_in([Path("runs/one")])}
    assert {lr: values[0] for lr, values in points.items()} == {f"{lr:g}": f"{loss:.3f}" for lr, loss in losses.items()}
    code, said = call(["train.runs", "delete", "two"], capsys, monkeypatch)
    assert code == 2
    assert "would delete 2 runs" in said
    assert Path("runs/two").exists()
    code, said = call(["train.runs", "delete", "two", "--yes"], capsys, monkeypatch)
    assert code == 0
    assert [path.name for path in Path("runs").iterdir()] == ["one"]


def test_sweeps_compare_by_what_tells_arms_apart_in_either(tmp_path, capsys, monkeypatch):
    """The second has one value of what the first varies."""
    for name, mlps in (("one", ("gelu", "swiglu")), ("two", ("gelu",))):
        runs = []
        for mlp in mlps:
            config = tiny(f"mlp={mlp}")
            fake_run(tmp_path / name / config.run_name(), config, 3.0, 10.0)
            runs.append({"folder": config.run_name(), "overrides": [f"mlp={mlp}"], "arm": "cap"})
        plan = {"name": name, "finding": None, "overrides": [], "runs": runs}
        (tmp_path / name / "sweep.json").write_text(json.dumps(plan))
    code, said = call(["train.runs", "compare", f"{tmp_path}/one", f"{tmp_path}/two"], capsys, monkeypatch)
    assert code == 0
    (row,) = [line for line in said.splitlines() if "cap, mlp=gelu" in line]
    assert row.split()[-3:] == ["3.000", "3.000", "+0.000"]


def test_options_may_stand_between_words(kept, capsys, monkeypatch):
    orders = (["--sort", "seed", "state=finished"], ["state=finished", "--sort", "seed"])
    (code, first), (_, second) = (call(["train.runs", str(kept), *words], capsys, monkeypatch) for words in orders)
    assert (code, first) == (0, second)


@pytest.mark.parametrize("command", ["train.runs", "train.inspect", "train.generate", "train.diagnose", "train.report"])
def test_help_fits_on_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, said = call([command, "--help"], capsys, monkeypatch)
    assert code == 0
    assert max(map(len, said.splitlines())) <= 80
    assert "usage: stabilab " in said


def of_arms(path: Path, losses: dict[str, list[float]]) -> Path:
    """Makes a sweep of two arms that an experiment names, with these losses at two LRs."""
    settings = {"plain": ["qk_norm=l2"], "capped": ["qk_norm=none", "attention=softcap"]}
    runs = []
    for arm, of_arm in losses.items():
        for lr, loss in zip((0.01, 0.03), of_arm, strict=True):
            overrides = [*settings[arm], f"optimizer.lr={lr}"]
            config = tiny(*overrides)
            fake_run(path / config.run_name(), config, loss, 10.0)
            runs.append({"folder": config.run_name(), "overrides": overrides, "arm": arm})
    (path / "sweep.json").write_text(json.dumps({"name": path.name, "finding": None, "overrides": [], "runs": runs}))
    return path


def test_arms_have_the_names_of_the_experiment(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    first = of_arms(tmp_path / "one", {"plain": [2.5, 2.7], "capped": [2.3, 2.3]})
    second = of_arms(tmp_path / "two", {"plain": [2.4, 2.4], "capped": [2.2, 2.3]})

    def rows(*words: str) -> list[list[str]]:
        code, said = call(["train.runs", *words], capsys, monkeypatch)
        assert code == 0
        return [line.split() for line in said.splitlines()]

    head, *listed = rows(str(first), "--sort", "lr")[:-1]
    assert (head[0], head[-1]) == ("run", "arm")
    assert sorted((row[4], row[-1]) for row in listed) == [
        ("0.01", "capped"), ("0.01", "plain"), ("0.03", "capped"), ("0.03", "plain"),
    ]  # fmt: skip
    assert [row[2] for row in rows(str(first), "arm=plain", "lr=0.03")[1:-1]] == ["2.700"]
    compared = [row[1:] for row in rows("compare", str(first), str(second)) if row[1:2] in (["plain"], ["capped"])]
    assert compared[:4] == [
        ["capped", "0.01", "2.300", "2.200", "-0.100"], ["capped", "0.03", "2.300", "2.300", "+0.000"],
        ["plain", "0.01", "2.500", "2.400", "-0.100"], ["plain", "0.03", "2.700", "2.400", "-0.300"],
    ]  # fmt: skip
    assert [[row[0], *row[3:]] for row in compared[4:]] == [["capped", "2.300", "2.200"], ["plain", "2.500", "2.400"]]


def test_runs_that_another_sweep_uses_are_not_deleted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert swept(*TINY, "seed=0", "out=runs", "name=one") == 0
    assert swept(*TINY, "seed=0,1", "out=runs", "name=two") == 0
    capsys.readouterr()
    code, said = call(["train.runs", "delete", "one", "--yes"], capsys, monkeypatch)
    assert code == 2
    assert "runs/two uses 1 of these runs" in said
    assert len(list(Path("runs").glob("*/*/weights.pt"))) == 2


@pytest.mark.parametrize(("answer", "code"), [("\x04", 0), (None, 130), ("no\n", 0), ("yes\n", 0)])
def test_deletes_only_what_the_user_agrees_to(tmp_path, answer, code):
    """Ctrl-D ends the input, and Ctrl-C, here None, is a signal."""
    run = trained(tmp_path, "steps=2", "watch_every=1").path
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "train.runs", "delete", str(run)]
    asked = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, text=True)
    said = "".join(iter(lambda: asked.stdout.read(1), "]"))
    os.write(ours, answer.encode()) if answer else asked.send_signal(signal.SIGINT)
    said += asked.communicate(timeout=60)[0]
    os.close(ours)
    os.close(theirs)
    assert (asked.returncode, run.exists()) == (code, answer != "yes\n")
    assert ("nothing deleted" if run.exists() else "deleted 1 runs") in said


def test_without_standard_input_delete_asks_for_yes(tmp_path, capsys, monkeypatch):
    run = trained(tmp_path, "steps=2", "watch_every=1").path
    monkeypatch.setattr(sys, "stdin", None)
    code, said = call(["train.runs", "delete", str(run)], capsys, monkeypatch)
    assert (code, "would delete 1 runs" in said, run.exists()) == (2, True, True)


def test_a_sweep_whose_runs_never_started_is_named_and_deleted(tmp_path, capsys, monkeypatch):
    run = trained(tmp_path, "steps=2", "watch_every=1").path
    sweep = tmp_path / "never"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps({"name": "never", "runs": [{"folder": "a"}, {"folder": "b"}]}))
    code, said = call(["train.runs", str(sweep)], capsys, monkeypatch)
    assert (code, "never is a sweep of 2 planned runs, and none has started" in said) == (2, True)
    code, said = call(["train.runs", "delete", str(sweep), "--yes"], capsys, monkeypatch)
    assert (code, said) == (0, "deleted 0 runs (0.0 MB) and 1 sweep folders\n")
    assert (sweep.exists(), run.exists()) == (False, True)


def test_folders_of_others_are_no_runs_and_never_deleted(tmp_path, capsys, monkeypatch):
    """A config.yaml can be anyone's, such as that of a project's conf/."""
    for name in ("conf", "proj/data", "notes-0123abcd"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("mine: 1\n")
        (tmp_path / name / "thesis.tex").write_text("years of work")
    trained(tmp_path / "runs")
    code, said = call(["train.runs", "delete", str(tmp_path), "--yes"], capsys, monkeypatch)
    assert code == 2
    assert "notes-0123abcd has no status.json" in said
    (tmp_path / "notes-0123abcd").rename(tmp_path / "notes")
    code, said = call(["train.runs", "delete", str(tmp_path), "--yes"], capsys, monkeypatch)
    assert (code, said.startswith("deleted 1 runs")) == (0, True)
    assert len(list(tmp_path.rglob("thesis.tex"))) == 3


def test_a_damaged_config_is_one_line_that_names_the_file(tmp_path, capsys, monkeypatch):
    run = trained(tmp_path, "steps=2", "watch_every=1").path
    sound = trained(tmp_path, "steps=2", "watch_every=1", "seed=1").path
    for text, fault in (("steps: [1", f"{run}/config.yaml, line"), ("", f"{run}/config.yaml is empty: delete the run")):
        (run / "config.yaml").write_text(text)
        for command in (["train.report", str(run)], ["train.runs", "compare", str(run), str(sound)]):
            code, said = call(command, capsys, monkeypatch)
            assert code == 2
            assert fault in said
        code, said = call(["train.runs", str(tmp_path)], capsys, monkeypatch)
        assert (code, said.splitlines()[-1]) == (0, "2 runs: 1 damaged config, 1 finished")
