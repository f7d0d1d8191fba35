"""What W&B, TensorBoard and the CSV file contain for a resumed run, and what is sent to a W&B server."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import pytest
import yaml
from filelock import FileLock

import train.loggers
from conf.axis import ConfigError
from tests.train.helpers import TINY, in_process, tiny, trained
from tests.train.loggers.sweep_server import serving
from tests.train.loggers.wandb_files import offline_run, records
from train.config.compose import compose
from train.loggers.csv import CsvFile
from train.loggers.detail import sent
from train.runfolder.folder import RunFolder
from train.sync import run_folders, sync, unsent

STEPS = 160
WANDB = [
    "logger=wandb", "logger.mode=offline", "logger.tags=[bench,requeued]", "logger.notes='why it ran'",
    f"steps={STEPS}",
]  # fmt: skip


# On one worker, because most tests use the same run.
def stopped_and_gone_on(parent: Path, *overrides: str) -> RunFolder:
    """Returns a run that SIGTERM stopped and another process finished."""
    config = tiny(*overrides)
    folder = RunFolder(parent / config.run_name())
    first = in_process(config, parent)
    while first.is_alive() and len(folder.metrics()) < STEPS // 4:
        time.sleep(0.02)
    first.terminate()
    first.join()
    assert folder.state() == "pending"
    second = in_process(config, parent)
    second.join()
    assert folder.state() == "finished"
    return folder


@pytest.fixture(scope="module")
def requeued(tmp_path_factory) -> RunFolder:
    return stopped_and_gone_on(tmp_path_factory.mktemp("wandb") / "my_sweep", *WANDB)


def test_both_attempts_are_one_run(requeued):
    """Each attempt's file has id, group, tags and notes; the steps of the second continue those of the first."""
    files = unsent(requeued.path)
    assert len(files) == 2
    started = [next(r.run for r in records(file) if r.WhichOneof("record_type") == "run") for file in files]
    digest = requeued.path.name.rpartition("-")[2]
    assert {(r.run_id, r.run_group, tuple(r.tags), r.notes) for r in started} == {
        (digest, "my_sweep", ("bench", "requeued"), "why it ran")
    }
    history = [row for file in files for row in offline_run(file).history]
    expected = requeued.metrics()
    assert [row["_step"] for row in history] == [row["step"] + 1 for row in expected]
    assert [row["trainer/global_step"] for row in history] == [row["step"] for row in expected]
    ours, theirs = ([row["train/loss"] for row in rows[1:]] for rows in (history, expected))
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_the_last_summary_is_the_runs(requeued):
    summary, held = requeued.summary(), offline_run(unsent(requeued.path)[-1]).summary
    for key in ("validation/loss", "validation/loss_init", "validation/loss_final", "logit_max", "N", "steps_done"):
        assert held[key] == pytest.approx(summary[key]), key
    assert held["state"] == "finished"
    codes = [
        r.exit.exit_code for f in unsent(requeued.path) for r in records(f) if r.WhichOneof("record_type") == "exit"
    ]
    assert codes == [1, 0]


def test_csv_has_every_row_of_a_run_that_went_on(tmp_path):
    folder = stopped_and_gone_on(tmp_path, "logger=csv", f"steps={STEPS}")
    expected = [{k: v for k, v in row.items() if not isinstance(v, list)} for row in folder.metrics()]
    found = pd.read_csv(folder.path / "metrics.csv", float_precision="round_trip")
    assert found["step"].tolist() == list(range(-1, STEPS))
    pd.testing.assert_frame_equal(found, pd.DataFrame(expected))


def test_csv_tells_nan_from_what_was_not_recorded(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append(folder.metrics_path, [{"step": 0, "train/loss": math.nan}, {"step": 1, "gradient/norm": 2.0}])
    CsvFile(tmp_path).finalize("success")
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,train/loss,gradient/norm", "0,NaN,", "1,,2.0"]


def test_tensorboard_has_the_same_names_and_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = trained(tmp_path, "logger=tensorboard", "logger.detail=all")
    events = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    rows = folder.metrics()
    names = {k for row in rows for k, v in row.items() if not isinstance(v, list)} - {"step"}
    reduced_by = {k for row in rows for k in sent(row)[0]} | {"train/tokens_per_second", "train/flops_per_second"}
    assert set(events.Tags()["scalars"]) == names | reduced_by
    assert set(events.Tags()["histograms"]) == {k for row in rows for k in sent(row, "all")[1]}
    for name in names:
        expected = [(row["step"], row[name]) for row in rows if name in row]
        assert [e.step for e in events.Scalars(name)] == [step for step, _ in expected]
        assert [e.value for e in events.Scalars(name)] == pytest.approx([v for _, v in expected], rel=1e-6), name


def test_the_logger_changes_no_number(tmp_path):
    plain, csv = trained(tmp_path / "a"), trained(tmp_path / "b", "logger=csv")
    assert plain.metrics_path.read_bytes() == csv.metrics_path.read_bytes()


@pytest.mark.parametrize("tags", ["['']", f"[{'x' * 65}]"])
def test_tags_that_wandb_refuses_are_refused(tags):
    with pytest.raises(ConfigError, match=r"logger\.tags"):
        compose([*TINY, "logger=wandb", f"logger.tags={tags}"])


def test_a_run_in_training_is_not_sent(requeued, capsys):
    """Its file is incomplete."""
    with FileLock(requeued.path / ".lock"):
        assert sync(requeued.path) == 0
    assert "nothing to send" in (said := capsys.readouterr().out)
    assert "1 runs are still training" in said
    assert len(unsent(requeued.path)) == 2


def test_what_can_not_be_sent_is_refused_in_one_line(requeued, monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    with pytest.raises(ConfigError, match="no W&B key"):
        sync(requeued.path)
    with pytest.raises(ConfigError, match="neither a sweep folder"):
        sync(tmp_path)


def test_a_sweep_has_the_folders_of_its_runs_and_its_own(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": [{"folder": "a"}, {"folder": "../other/b"}]}))
    assert run_folders(tmp_path) == [tmp_path, tmp_path / "a", tmp_path / "../other/b"]


@pytest.fixture(scope="module")
def openwandb(tmp_path_factory):
    """Yields the URL of a W&B-compatible server on loopback. Needs `openwandb`, which is not a dependency."""
    if shutil.which("openwandb") is None:
        pytest.skip("openwandb isn't installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = tmp_path_factory.mktemp("openwandb")
    command = ["openwandb", "serve", "--host", "127.0.0.1", "-p", str(port), "--data-dir", str(data)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/login", timeout=5)
            break
        except OSError:
            time.sleep(0.1)
    yield url, data
    process.terminate()
    process.wait()


def test_a_server_gets_a_requeued_run_once(requeued, openwandb, tmp_path):
    """Runs `stabilab sync` twice on a copy; the second call has nothing left to send."""
    url, data = openwandb
    copy = tmp_path / "my_sweep" / requeued.path.name
    shutil.copytree(requeued.path, copy)
    (copy.parent / "sweep.json").write_text(json.dumps({"runs": [{"folder": copy.name}]}))
    environment = os.environ | {"WANDB_BASE_URL": url, "WANDB_API_KEY": "local" + 40 * "0", "NETRC": "/nonexistent"}
    environment.pop("WANDB_MODE", None)
    command = [sys.executable, "-m", "train.sync", str(copy.parent)]
    first, second = (subprocess.run(command, env=environment, capture_output=True, text=True) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert f"2 W&B files of 1 run in {copy.parent} sent to {url}" in first.stdout
    assert "nothing to send" in second.stdout
    (history,) = data.glob("files/*/stabilab/*/wandb-history.jsonl")
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    assert sorted(row["_step"] for row in rows) == list(range(STEPS + 1))
    expected = {row["step"] + 1: row.get("train/loss", math.nan) for row in requeued.metrics()}
    for row in rows:
        assert row.get("train/loss", math.nan) == pytest.approx(expected[row["_step"]], rel=1e-6, nan_ok=True)


@pytest.mark.slow
def test_an_agent_of_a_wandb_sweep_trains_its_points(tmp_path):
    """`wandb sweep` with the shipped YAML, then `wandb agent`: one run folder per config and one W&B run per point,
    even for a point that was already trained."""
    pairs = [o.partition("=") for o in TINY]
    plain = {key: yaml.safe_load(value) for key, _, value in pairs if value != "null"}  # An agent writes None.
    common = plain | {"qk_norm": "none", "logger": "wandb", "logger.mode": "offline", "out": str(tmp_path / "runs")}
    points = 2 * [common | {"optimizer.lr": 0.0123, "seed": 2}]
    shipped = Path(train.loggers.__file__).parent / "wandb_sweep.yaml"
    with serving(points) as server:
        # The agent calls `python`.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        key = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": 40 * "0", "NETRC": "/nonexistent", "PATH": path}
        environment = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"} | key
        common_arguments = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True}
        made = subprocess.run(["wandb", "sweep", "--project", "stabilab", str(shipped)], **common_arguments)
        assert "wandb agent somebody/stabilab/sweep456" in made.stderr, made.stderr
        assert yaml.safe_load(server.config) == (sweep := yaml.safe_load(shipped.read_text()))
        done = subprocess.run(["wandb", "agent", "somebody/stabilab/sweep456"], **common_arguments)
        assert done.returncode == 0, done.stderr
        ids = server.given
    assert len(list(tmp_path.glob("runs/*/summary.json"))) == 1, done.stdout + done.stderr
    found = {}
    for file in tmp_path.glob("runs/*/wandb/offline-run-*/*.wandb"):
        started = next(r.run for r in records(file) if r.WhichOneof("record_type") == "run")
        assert started.sweep_id == "sweep456"
        found[started.run_id] = offline_run(file), RunFolder(file.parents[2])
    assert sorted(found) == ids == ["agentrun0", "agentrun1"]
    for run, folder in found.values():
        assert (run.config["optimizer"]["lr"], run.config["seed"]) == (0.0123, 2)
        assert run.summary[sweep["metric"]["name"]] == folder.summary()["validation/loss"]
        assert [row["_step"] for row in run.history] == list(range(13))
