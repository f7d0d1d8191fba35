"""Migration of fixtures/earlier_format.zip, an interrupted sweep that was trained by the code of format 1.

It has a finished run, a diverged one, and one that SIGTERM stopped after step 4 of 8, with its checkpoint.
"""

import json
import math
import shutil
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import train.migrate as command
from conf.axis import ConfigError
from train.config.compose import from_file
from train.findings.__main__ import judge
from train.migrate import migrate
from train.report import report
from train.results.sweep import load_sweep
from train.run.trainer import train
from train.runfolder.files import read_json
from train.runfolder.folder import FORMAT, RunFolder
from train.runfolder.metrics import metric_of
from train.sweep import launch
from train.sweeps.plan import plan

FIXTURE = Path(__file__).parent / "fixtures" / "earlier_format.zip"
FINISHED, DIVERGED, CUT = "e024b285", "116855a8", "446d440b"


@pytest.fixture
def sweep(tmp_path) -> Path:
    shutil.unpack_archive(FIXTURE, tmp_path)
    return tmp_path / "sweep"


def run_of(sweep: Path, digest: str) -> RunFolder:
    (path,) = [p.parent for p in sweep.glob("*/config.yaml") if from_file(p).digest() == digest]
    return RunFolder(path)


def contents(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if not name.endswith(".lock")}


def assert_close(ours, theirs) -> None:
    """Asserts equality up to the rounding of another machine."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, dict):
            assert_close(value, theirs[name])
        elif isinstance(value, float | list):
            assert value == pytest.approx(theirs[name], rel=1e-3, abs=1e-6, nan_ok=True), name
        else:
            assert value == theirs[name], name


LATER = (
    "floor/*", "epochs", "bytes_per_token", "peak_memory_bytes", "*/g_over_sqrt_v_rms", "update/*/cosine",
    "*/weight_bound*", "residual/*/dimension", "residual/*/diversity", "residual/*/mean_share", "output/collapse",
    "output/zero_loss", "gradient/zeros", "gradient/cosine_to_weights",
)  # fmt: skip
"""Names that runs of the earlier format don't have."""


def before(values):
    """What runs of the earlier format have: no floors, and not all metrics of now."""
    values = {name: value for name, value in values.items() if not any(fnmatch(name, later) for later in LATER)}
    return values | {name: before(value) for name, value in values.items() if isinstance(value, dict)}


def trained_now(config, parent: Path, tmp_path: Path) -> RunFolder:
    train(replace(config, cache=str(tmp_path / "cache")), parent=parent)
    return RunFolder(parent / config.run_name())


@pytest.mark.parametrize("digest", [FINISHED, DIVERGED])
def test_a_migrated_run_is_as_one_of_now(sweep, tmp_path, digest):
    config = from_file(run_of(sweep, digest).path / "config.yaml")
    migrate(sweep)
    ours, theirs = run_of(sweep, digest), trained_now(config, tmp_path / "now", tmp_path)
    assert ours.path.name == theirs.path.name == config.run_name()
    assert ours.status()["format"] == FORMAT
    names = {name for row in ours.metrics() for name in row}
    assert [name for name in names if metric_of(name) is None] == []
    assert len(ours.metrics()) == len(theirs.metrics())
    for row, expected in zip(ours.metrics(), theirs.metrics(), strict=True):
        if not math.isfinite(expected.get("train/loss", 0.0)):
            continue  # rounding decides at which step it becomes infinite
        expected = before(expected)
        assert list(row) == list(expected)
        if digest == FINISHED:
            assert_close(row, expected)
    found, expected = ours.summary(), theirs.summary()
    expected = before(expected)
    assert found.keys() == expected.keys()
    for name in ("train/tokens_per_second", "train/flops_per_second", "seconds"):
        del found[name], expected[name]
    if digest == FINISHED:
        assert_close(found, expected)
        assert ours.metrics()[-1]["validation/loss"] == found["validation/loss"] == found["validation/loss_final"]
    else:
        assert (found["state"], found["validation/loss"]) == ("diverged", found["validation/loss_init"])


def test_a_run_that_was_cut_off_goes_on(sweep, tmp_path):
    cut = run_of(sweep, CUT)
    config = from_file(cut.path / "config.yaml")
    assert cut.checkpoint.exists()
    assert len(cut.metrics()) < config.steps
    migrate(sweep)
    gone_on, uncut = trained_now(config, sweep, tmp_path), trained_now(config, tmp_path / "now", tmp_path)
    assert gone_on.status()["attempt"] == 2
    weights, expected = (torch.load(run.path / "weights.pt", weights_only=True) for run in (gone_on, uncut))
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-5)
    assert [list(before(row)) for row in gone_on.metrics()] == [list(before(row)) for row in uncut.metrics()]
    assert gone_on.summary()["steps_done"] == config.steps


def test_a_second_time_nothing_changes(sweep, capsys):
    migrate(sweep)
    assert "3 of 3 runs rewritten" in capsys.readouterr().out
    before = contents(sweep)
    migrate(sweep)
    assert contents(sweep) == before
    assert "0 of 3 runs rewritten, 0 renamed" in capsys.readouterr().out


@pytest.mark.parametrize("writes", range(10))
def test_an_interrupted_migration_goes_on(sweep, tmp_path, monkeypatch, writes):
    """Raises KeyboardInterrupt in place of each write of a file and of the removal of reports."""
    shutil.copytree(sweep, tmp_path / "expected" / "sweep")
    migrate(tmp_path / "expected" / "sweep")
    left = writes

    def interrupted(path: Path, text: str) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        write(path, text)

    write = command.write_atomically
    monkeypatch.setattr(command, "write_atomically", interrupted)
    try:
        migrate(sweep)
    except KeyboardInterrupt:
        assert contents(sweep) != contents(tmp_path / "expected" / "sweep")
    monkeypatch.setattr(command, "write_atomically", write)
    migrate(sweep)
    assert contents(sweep) == contents(tmp_path / "expected" / "sweep")


def test_old_names_of_folders_are_followed(sweep, tmp_path):
    """The run is listed by its own sweep, and by another sweep that shares it."""
    run = run_of(sweep, FINISHED)
    config, before = from_file(run.path / "config.yaml"), run.path.name
    (sweep / before).rename(sweep / f"called-otherwise-{FINISHED}")
    planned = (sweep / "sweep.json").read_text().replace(before, f"called-otherwise-{FINISHED}")
    (sweep / "sweep.json").write_text(planned)
    beside = tmp_path / "beside"
    beside.mkdir()
    entry = {"folder": f"../sweep/called-otherwise-{FINISHED}", "overrides": []}
    (beside / "sweep.json").write_text(json.dumps({"name": "beside", "runs": [entry]}))
    migrate(sweep)
    assert (sweep / config.run_name() / "summary.json").exists()
    for folder in (sweep, beside):
        entries = [folder / run["folder"] for run in read_json(folder / "sweep.json")["runs"]]
        assert (sweep / config.run_name()).resolve() in [entry.resolve() for entry in entries]
    assert load_sweep(sweep).runs.set_index("run").loc[config.run_name(), "state"] == "finished"
    assert load_sweep(beside).runs["state"].tolist() == ["finished"]


def test_what_was_made_of_the_old_files_is_removed(sweep):
    run = run_of(sweep, FINISHED)
    (sweep / "report").mkdir()
    (sweep / "report" / "runs.csv").write_text("loss\n1\n")
    (run.path / "metrics.parquet").write_bytes(b"old")
    (run.path / "metrics.csv").write_text("step,loss\n")
    migrate(sweep.parent)
    run = run_of(sweep, FINISHED)
    assert not (sweep / "report").exists()
    assert not (run.path / "metrics.parquet").exists()
    assert "train/loss" in (run.path / "metrics.csv").read_text().splitlines()[0].split(",")


def test_copies_of_a_run_under_other_names_are_refused_before_anything_is_written(sweep):
    run = run_of(sweep, FINISHED).path
    shutil.copytree(run, sweep / f"b-{FINISHED}")
    run.rename(sweep / f"a-{FINISHED}")
    before = contents(sweep)
    with pytest.raises(ConfigError, match=rf"b-{FINISHED} and .*/a-{FINISHED} are the same run: remove one"):
        migrate(sweep)
    assert contents(sweep) == before


def test_a_folder_beside_single_runs_is_left_alone(sweep, tmp_path):
    run_of(sweep, FINISHED).path.rename(tmp_path / "run")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.tex").write_text("years of work")
    migrate(tmp_path / "run")
    assert (tmp_path / "report" / "thesis.tex").read_text() == "years of work"


def test_each_command_names_the_migration(sweep, tmp_path):
    run = run_of(sweep, FINISHED)
    config = from_file(run.path / "config.yaml")
    planned = plan(read_json(sweep / "sweep.json")["overrides"])
    planned.folder = sweep
    before = contents(sweep)
    for ask in (
        lambda: report(sweep),
        lambda: report(run.path),
        lambda: launch(planned),
        lambda: train(config, parent=sweep),
        lambda: train(replace(config, out=str(sweep))),
    ):
        with pytest.raises(ConfigError, match=r"earlier version.*stabilab migrate .*sweep"):
            ask()
    assert contents(sweep) == before


def test_a_finding_names_the_migration(sweep, tmp_path):
    from train.findings.base import find

    sweep.rename(tmp_path / "qk_norm")
    with pytest.raises(ConfigError, match=r"stabilab migrate .*qk_norm"):
        judge([find("qk_norm")], [f"out={tmp_path}", "logger=none", "progress=false"])


def test_a_run_in_training_stops_it(sweep):
    run = run_of(sweep, CUT)
    before = contents(sweep)
    with FileLock(run.path / ".lock"), pytest.raises(ConfigError, match="is training this run: wait for its end"):
        migrate(sweep)
    assert contents(sweep) == before


def test_a_folder_without_runs_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["migrate", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert "has no runs: give a run folder, a sweep folder, or a folder of sweeps" in capsys.readouterr().err
