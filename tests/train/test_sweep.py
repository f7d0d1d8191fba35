"""Sweeps: the grid, and runs that are skipped, resumed, failing or interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from conf.axis import ConfigError
from tests.conftest import composer
from tests.train.config.helpers import own_conf
from tests.train.helpers import TINY, call, swept, trained
from train.cli.words import Words, taken
from train.config.grid import expand
from train.results.sweep import load_sweep
from train.runfolder.folder import RunFolder
from train.sweeps.live_table import LiveTable
from train.sweeps.plan import plan
from train.sweeps.pool import slots


def folder_of(out: Path) -> Path:
    (found,) = [p for p in out.iterdir() if (p / "sweep.json").exists()]
    return found


@pytest.mark.parametrize(
    ("overrides", "points"),
    [
        (["seed=0,1", "steps=5"], [["steps=5", "seed=0"], ["steps=5", "seed=1"]]),
        (["seed=[3,4]"], [["seed=3"], ["seed=4"]]),
        (["seed=range(2)", "qk_norm=choice(none,l2)"],
         [["seed=0", "qk_norm=none"], ["seed=0", "qk_norm=l2"], ["seed=1", "qk_norm=none"], ["seed=1", "qk_norm=l2"]]),
        (["steps=5"], [["steps=5"]]),
        (["seed=0,1", "seed=7"], [["seed=7"]]),
    ],
)  # fmt: skip
def test_grid(overrides, points):
    assert expand(overrides) == [(None, point) for point in points]


def test_experiment_gives_the_grid_and_overrides_narrow_it():
    whole = [p for _, p in expand(["experiment=qk_norm"])]
    assert len(whole) == 2 * 2 * 6 * 3
    narrowed = [p for _, p in expand(["experiment=qk_norm", "optimizer.lr=0.1", "seed=0,1"])]
    assert len(narrowed) == 2 * 2 * 2
    assert all("optimizer.lr=0.1" in point for point in narrowed)
    keys = [o.partition("=")[0] for o in expand(["experiment=qk_norm", "model=mini-w64-d2,mini-w64-d4"])[0][1]]
    assert keys == ["experiment", "model", "qk_norm", "optimizer.lr", "seed"], "an override keeps the axis' place"


def test_qk_norm_experiment_is_a_ladder_over_lrs():
    configs = plan(["experiment=qk_norm"]).configs
    assert len({c.model.width for c in configs}) >= 2
    assert len({c.optimizer.lr for c in configs}) >= 6
    assert len({c.seed for c in configs}) >= 3
    assert {c.qk_norm.name for c in configs} == {"none", "layernorm"}
    assert {c.finding for c in configs} == {"qk_norm"}


def test_one_bad_point_stops_all_before_anything_is_written(tmp_path, capsys, monkeypatch):
    code, said = call(["train.sweep", *TINY, "optimizer.lr=0.1,-1", f"out={tmp_path / 'new'}"], capsys, monkeypatch)
    assert code == 2
    assert said.startswith("error: optimizer.lr=-1")
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_points_match_single_runs_and_finished_ones_are_skipped(tmp_path, capsys):
    assert swept(*TINY, "seed=0,1", "qk_norm=none,layernorm", f"out={tmp_path}") == 0
    folder = folder_of(tmp_path)
    listed = json.loads((folder / "sweep.json").read_text())["runs"]
    assert len(listed) == 4
    runs = [RunFolder(folder / run["folder"]) for run in listed]
    assert {run.state() for run in runs} == {"finished"}
    alone = trained(tmp_path / "alone", "seed=1", "qk_norm=layernorm")
    same = RunFolder(folder / alone.path.name)
    assert same.metrics_path.read_bytes() == alone.metrics_path.read_bytes()
    stamps = {run.path: (run.path / "weights.pt").stat().st_mtime_ns for run in runs}

    assert swept(*TINY, "seed=0,1", "qk_norm=none,layernorm", f"out={tmp_path}") == 0
    assert "4 done already" in capsys.readouterr().out
    assert stamps == {path: (path / "weights.pt").stat().st_mtime_ns for path in stamps}


def test_a_failing_run_stops_no_other_and_is_named(tmp_path, capsys):
    """A folder blocks the path where one run writes its weights."""
    names = [c.run_name() for c in plan([*TINY, "seed=0,1,2", f"out={tmp_path}"]).configs]
    folder = plan([*TINY, "seed=0,1,2", f"out={tmp_path}"]).folder
    (folder / names[1] / "weights.tmp").mkdir(parents=True)
    assert swept(*TINY, "seed=0,1,2", f"out={tmp_path}") == 1
    states = [RunFolder(folder / name).state() for name in names]
    assert states == ["finished", "failed", "finished"]
    assert names[1] in capsys.readouterr().out
    (folder / names[1] / "weights.tmp").rmdir()
    assert swept(*TINY, "seed=0,1,2", f"out={tmp_path}") == 0
    assert "2 done already" in capsys.readouterr().out
    assert RunFolder(folder / names[1]).state() == "finished"


LINUX_ALONE = ("sched_getaffinity", "sched_setaffinity", "memfd_create", "pidfd_open", "eventfd", "posix_fallocate")
"""Functions of `os` that macOS does not have."""


def elsewhere(folder: Path) -> dict[str, str]:
    """Returns an environment like that of another machine.

    Python has no functions of Linux alone, the temporary folder is longer than a socket's path can be, there is no
    HOME, and the locale knows only ASCII.
    """
    temporary = folder / ("t" * 100) / ("t" * 100)
    temporary.mkdir(parents=True)
    hide = "import os\n" + "".join(f"if hasattr(os, {name!r}): del os.{name}\n" for name in LINUX_ALONE)
    (folder / "sitecustomize.py").write_text(hide)
    kept = {k: v for k, v in os.environ.items() if k != "HOME"}
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    return kept | ascii_only | {"TMPDIR": str(temporary), "PYTHONPATH": path}


@pytest.mark.parametrize(
    "whole_group", [pytest.param(True, marks=pytest.mark.slow), False], ids=["ctrl_c", "sigterm_elsewhere"]
)
def test_interruption_leaves_checkpoints_and_the_same_command_goes_on(tmp_path, tmp_path_factory, whole_group):
    """Ctrl-C reaches every process of the terminal's group; a SIGTERM of Slurm or a user only reaches the sweep.

    The second sweep runs in an environment in which much is missing.
    """
    environment = None if whole_group else elsewhere(tmp_path_factory.mktemp("elsewhere"))
    overrides = ["seed=0,1", "steps=400", "watch_every=25", f"out={tmp_path}"]
    command = [sys.executable, "-m", "train.sweep", *TINY, *overrides]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not list(tmp_path.glob("*/*/timing.jsonl")):
        time.sleep(0.05)
    time.sleep(0.2)
    if whole_group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == (130 if whole_group else 143), errors
    assert f"stopped by {'SIGINT' if whole_group else 'SIGTERM'}; the same command resumes" in errors
    assert "Traceback" not in errors
    runs = [RunFolder(p.parent) for p in tmp_path.glob("*/*/status.json")]
    assert runs
    assert {run.state() for run in runs} <= {"pending", "finished"}
    assert any(run.checkpoint.exists() for run in runs)
    assert swept(*TINY, *overrides) == 0
    finished = [RunFolder(p.parent) for p in tmp_path.glob("*/*/summary.json")]
    assert {run.state() for run in finished} == {"finished"}
    assert len(finished) == 2


def test_ctrl_c_while_the_server_of_the_runs_starts_is_one_line(tmp_path):
    """The server imports libraries for seconds. It must not die with a traceback, and no run must be left behind."""
    command = [sys.executable, "-m", "train.sweep", *TINY, "seed=0,1", "steps=600", f"out={tmp_path}"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    started: list[psutil.Process] = []
    while process.poll() is None and not started:
        with suppress(psutil.Error):
            children = psutil.Process(process.pid).children()
            started = [child for child in children if "forkserver" in " ".join(child.cmdline())]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors in (
        "stopped; the same command resumes from the last checkpoint\n",
        "stopped by SIGINT; the same command resumes from the checkpoint\n",
    )
    psutil.wait_procs(started, timeout=60)
    assert not started[0].is_running()


def test_runs_at_once_are_spread_over_the_gpus_or_share_the_cores(monkeypatch):
    monkeypatch.setattr("train.sweeps.pool.cores", lambda: 6)
    plain, four = (composer().config(["accelerator=cpu", *more]) for more in ([], ["launcher.runs_at_once=4"]))
    assert slots(plain) == [None] * 6
    assert slots(replace(plain, threads=4)) == [None]
    assert slots(four) == [None] * 4
    assert four.digest() == plain.digest()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert slots(replace(plain, accelerator="auto")) == ["3", "5"]
    assert slots(replace(four, accelerator="auto")) == ["3", "5", "3", "5"]


def test_a_killed_run_is_a_failure_of_its_own(tmp_path):
    overrides = ["steps=30,6000", "watch_every=10", f"out={tmp_path}"]
    command = [sys.executable, "-m", "train.sweep", *TINY, *overrides]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not list(tmp_path.glob("*/*-steps6000-*/timing.jsonl")):
        time.sleep(0.05)
    (victim,) = [RunFolder(p.parent) for p in tmp_path.glob("*/*-steps6000-*/status.json")]
    os.kill(victim.status()["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert victim.state() == "failed"
    assert "SIGKILL" in output
    (other,) = [RunFolder(p.parent) for p in tmp_path.glob("*/*-steps30-*/status.json")]
    assert other.state() == "finished"


@pytest.fixture
def trial(tmp_path):
    """Adds an experiment to conf/, with the arms below."""
    with own_conf(tmp_path) as conf:
        (conf / "experiment" / "trial.yaml").write_text("# @package _global_\n" + ARMS)
        yield


ARMS = """
arms:
  plain: {}
  clipped: {optimizer.clip: 0.5, seed: 3}
  decayed:
    - {optimizer.decay: coupled}
    - {optimizer.decay: coupled, optimizer.lr: "0.1,0.2", seed: 5}
  left out: null

hydra:
  sweeper:
    params:
      optimizer.lr: 1e-2,2e-2
      seed: 0,1
"""


@pytest.mark.usefixtures("trial")
def test_arms_are_grids_of_their_own():
    points = expand(["experiment=trial", "steps=7"])
    assert [arm for arm, _ in points] == ["plain"] * 4 + ["clipped"] * 2 + ["decayed"] * 6
    assert points[4][1] == ["optimizer.clip=0.5", "seed=3", "experiment=trial", "steps=7", "optimizer.lr=0.01"]
    assert [p[-2:] for _, p in points[-2:]] == [["steps=7", "optimizer.lr=0.1"], ["steps=7", "optimizer.lr=0.2"]]
    narrowed = expand(["experiment=trial", "optimizer.lr=1e-2", "seed=0"])
    assert [arm for arm, _ in narrowed] == ["plain", "clipped", "decayed", "decayed"]


def test_arms_of_the_command_line_are_those_of_a_file():
    text = "arms=plain: ; capped: qk_norm=none 'attention=softcap'; decayed: optimizer.weight_decay=1e-6,1e-5"
    points = expand([text, "steps=7", "seed=0,1"])
    assert [arm for arm, _ in points] == ["plain"] * 2 + ["capped"] * 2 + ["decayed"] * 4
    assert points[2][1] == ["qk_norm=none", "attention=softcap", "steps=7", "seed=0"]
    assert points[-1][1] == ["steps=7", "optimizer.weight_decay=1e-05", "seed=1"]
    assert plan([text, "seed=0,1"]).folder.name == "plain+capped+decayed-seed"


def test_arms_as_an_option_are_those_of_the_override():
    text = "plain: ; capped: qk_norm=none"
    for given in (["--arms", text], [f"--arms={text}"], [f"arms={text}"]):
        assert taken([*given, "seed=0", "--dry-run"]) == (Words(dry_run=True), [f"arms={text}", "seed=0"])
    assert taken(["seed=0", "--arms"])[1] == ["seed=0", "arms="]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "can't read ''"),
        ("plain", "can't read 'plain'"),
        ("a: steps", "can't read 'a: steps'"),
        ("a: ; a: seed=1", "'a: seed=1' repeats an arm"),
        ("a: seed=1 seed=2", "repeats a key"),
        ("a: 'seed=1", "No closing quotation"),
    ],
)
def test_arms_that_cannot_be_read(text, said):
    with pytest.raises(ConfigError) as fault:
        expand([f"arms={text}"])
    assert str(fault.value).startswith("arms: ")
    assert said in str(fault.value)


def test_the_table_of_a_sweep_names_arms_and_values(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    arms = "arms=plain: ; capped: qk_norm=none attention=softcap"
    sweep = plan([*TINY, arms, "optimizer.lr=1e-2,3e-2", "seed=0,1", f"out={tmp_path}"])
    swapped = plan([*TINY, arms, "seed=0,1", "optimizer.lr=1e-2,3e-2", f"out={tmp_path}"])
    for planned, corner, columns in ((sweep, "seed", ["0", "1"]), (swapped, "optimizer.lr", ["0.01", "0.03"])):
        table = LiveTable(planned, 1)
        table.console.print(table._table())
        lines = capsys.readouterr().out.splitlines()
        head = next(i for i, text in enumerate(lines) if text.startswith(f"validation loss, by {corner}"))
        assert lines[head].split()[-2:] == columns
        assert [text.split()[0] for text in lines[head + 1 :]] == ["plain", "plain", "capped", "capped"]
        assert max(map(len, lines)) <= 80


def test_the_table_shows_a_run_whose_process_still_sends_its_last_rows(tmp_path):
    """A run has ended before its process has; one that is trained again has the old files until it starts."""
    planned = plan([*TINY, "seed=0,1", f"out={tmp_path}"])
    first, second = (RunFolder(planned.folder / config.run_name()) for config in planned.configs)
    for run in (first, second):
        run.path.mkdir(parents=True)
        run.set_status("finished")
        (run.path / "summary.json").write_text(json.dumps({"validation/loss_final": 3.25}))
    table = LiveTable(planned, 2, force=True)
    first.set_status("finished")
    table.update([], [first.path.name, second.path.name])
    assert [table._cell(i).plain for i in (0, 1)] == ["3.250", "."]


def test_a_run_whose_process_left_nothing_points_to_its_log(tmp_path, capsys):
    planned = plan([*TINY, f"out={tmp_path}"])
    (run,) = (RunFolder(planned.folder / config.run_name()) for config in planned.configs)
    run.path.mkdir(parents=True)
    assert LiveTable(planned, 1).print_end() == 1
    assert f"its process ended without a result, see {run.path / 'log.txt'}" in capsys.readouterr().out
    with FileLock(run.path / ".lock"):
        LiveTable(planned, 1).print_end()
    assert "of another command is training it" in capsys.readouterr().out


@pytest.mark.parametrize("arms", [["arms=plain: ; free: qk_norm=none"], ["--arms", "plain: ; free: qk_norm=none"]])
def test_a_dry_run_counts_and_writes_nothing(tmp_path, capsys, monkeypatch, arms):
    out = tmp_path / "out"
    command = [*TINY, *arms, "seed=0,1", f"out={out}", "--dry-run"]
    code, said = call(["train.sweep", *command], capsys, monkeypatch)
    assert code == 0
    assert not out.exists()
    rows = [text.split() for text in said.splitlines()]
    assert [row[1:6] for row in rows[1:3]] == [
        ["plain", "2", "0", "8,304", "1,536"],
        ["free", "2", "0", "8,272", "1,536"],
    ]
    assert "4 of 4 runs to train" in said
    assert "6,144 tokens" in said


@pytest.mark.usefixtures("trial")
def test_a_sweep_names_the_arm_of_each_run(tmp_path):
    planned = plan(["experiment=trial", *TINY, "seed=0", f"out={tmp_path / 'out'}"])
    planned.write_plan()
    listed = json.loads((planned.folder / "sweep.json").read_text())["runs"]
    assert [run["arm"] for run in listed] == planned.arms
    decayed = {c.optimizer.decay for c, arm in zip(planned.configs, planned.arms, strict=True) if arm == "decayed"}
    assert decayed == {"coupled"}


def test_a_run_that_a_sweep_beside_it_has_ended_is_not_trained_again(tmp_path, capsys):
    assert swept(*TINY, "seed=0,1", f"out={tmp_path}") == 0
    folder = folder_of(tmp_path)
    capsys.readouterr()
    assert swept(*TINY, "seed=0,1,2", f"out={tmp_path}") == 0
    assert "3 runs in " in (said := capsys.readouterr().out)
    assert "2 done already" in said
    (other,) = [p for p in tmp_path.iterdir() if (p / "sweep.json").exists() and p != folder]
    listed = [run["folder"] for run in json.loads((other / "sweep.json").read_text())["runs"]]
    assert [Path(name).parent.name for name in listed] == [folder.name, folder.name, ""]
    assert len([p for p in other.iterdir() if (p / "weights.pt").exists()]) == 1
    frame = load_sweep(other).runs
    assert frame["ended"].all()
    assert frame["run"].nunique() == 3
    assert swept(*TINY, "seed=0,1,2", f"out={tmp_path}") == 0
    assert "3 done already" in capsys.readouterr().out


def test_a_run_that_a_sweep_beside_it_has_begun_is_not_used_from_there(tmp_path):
    """Only one that has ended: another is trained here as if it were not there."""
    first, second = (plan([*TINY, "seed=0,1", f"out={tmp_path}", f"name={name}"]) for name in ("first", "second"))
    begun, ended = (RunFolder(first.folder / config.run_name()) for config in first.configs)
    for run, state in ((begun, "running"), (ended, "finished")):
        run.path.mkdir(parents=True)
        run.set_status(state)
    (ended.path / "summary.json").write_text(json.dumps({"N": 1}))
    first.write_plan()
    assert [run.path.parent for run in second.runs()] == [second.folder, first.folder]
    assert [config.seed for config in second.to_do()] == [0]
    assert [config.seed for config in second.to_do(force=True)] == [0, 1]
