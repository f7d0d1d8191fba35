"""A run folder's files: what is kept at a resume, what is updated, and who may write."""

import json
import math

import pytest

from conf.axis import ConfigError
from train.runfolder.columns import read
from train.runfolder.files import read_rows
from train.runfolder.folder import RunFolder
from train.runfolder.measured import measured


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "tiny-1a2b3c4d")
    folder.claim("seed: 0\n")
    yield folder
    folder.release()


def test_a_resume_drops_rows_after_the_checkpoint_from_all_files(run):
    """Times too: a run's seconds would count the steps that are taken twice."""
    run.append(run.metrics_path, [{"step": step, "train/loss": 3.0} for step in (-1, 0, 1, 2, 3)])
    run.append(run.timing_path, [{"step": step, "seconds": 2.0} for step in (0, 2, 3)])
    run.append(run.warnings_path, [{"step": 2, "sign": "logits"}])
    assert run.seconds() == 6
    run.rewind(2)
    assert [row["step"] for row in run.metrics()] == [-1, 0, 1]
    assert [row["step"] for row in read_rows(run.timing_path)] == [0]
    assert read_rows(run.warnings_path) == []
    assert run.seconds() == 2
    run.rewind(-1)
    assert run.metrics() == []


def test_a_status_keeps_what_it_is_not_told(run):
    run.set_status("running", step=3, host="n1")
    run.set_status("finished", step=9)
    found = run.status()
    assert (found["state"], found["step"], found["host"]) == ("finished", 9, "n1")
    assert not run.has_ended(), "without a summary"
    (run.path / "summary.json").write_text('{"N": 1}')
    assert run.has_ended()


def test_a_folder_in_training_is_not_measured_or_claimed_by_another(run):
    other = RunFolder(run.path)
    assert other.is_claimed()
    with pytest.raises(ConfigError, match="is training this run already"), other.held():
        raise AssertionError
    with pytest.raises(ConfigError, match="is training this run already"):
        other.claim("seed: 1\n")
    assert (run.path / "config.yaml").read_text() == "seed: 0\n"
    run.release()
    assert not other.is_claimed()
    with other.held():
        assert run.is_claimed()
    assert not run.is_claimed()


def test_training_again_keeps_the_log_alone(run):
    for name in ("log.txt", "metrics.jsonl", "weights.pt"):
        (run.path / name).write_text("x")
    (run.path / "report").mkdir()
    run.clear()
    assert sorted(path.name for path in run.path.iterdir() if path.name != ".lock") == ["config.yaml", "log.txt"]


def test_columns_of_runs_that_are_being_written(run, tmp_path):
    """A last line without its end is left out; a metric that no run has is no column."""
    rows = [{"step": 0, "m": 1.5}, {"step": 1}, {"step": 2, "m": math.nan, "heads": [1.0]}]
    run.append(run.metrics_path, rows)
    with run.metrics_path.open("a") as file:
        file.write('{"step": 3, "m": 9')
    found, counts = read([run, RunFolder(tmp_path / "gone")], ["m", "x"])
    assert counts == [3, 0]
    assert list(found.columns) == ["step", "m"]
    assert found["m"].tolist()[:1] == [1.5]
    assert found["m"].isna().tolist() == [False, True, True]
    assert [json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines()[:3]] == [0, 1, 2]


def test_what_rows_say_of_the_part_that_ran():
    """The last watched row has a loss that is not finite: its probes are not the final ones."""
    watched = [(4.0, 10.0, 2.0, 1.5), (6.0, 30.0, 1.0, 0.5), (5.0, 20.0, 1.25, 0.75), (math.nan, 99.0, 0.0, 0.0)]
    rows = [{"step": -1, "validation/loss": 5.0}, {"step": 0, "train/loss": 5.5}] + [
        {"step": 1 + i, "train/loss": loss, "attention/logit_max": logit, "attention/entropy": entropy,
         "attention/entropy_min": least, "attention/block0/logit_max_by_head": [logit]}
        for i, (loss, logit, entropy, least) in enumerate(watched)
    ]  # fmt: skip
    found = measured(rows, 5.0)
    assert (found["steps_done"], found["steps_above_init"]) == (5, 2)
    assert (found["logit_max"], found["logit_max_final"]) == (30, 20)
    assert (found["entropy_final"], found["entropy_min"]) == (1.25, 0.5)
    assert found["final"]["step"] == 3
    assert "attention/block0/logit_max_by_head" not in found["final"]
    assert measured(rows[:2], 5.0)["logit_max"] is None
