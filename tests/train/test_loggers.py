import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from wandb.proto import wandb_internal_pb2 as protobuf

from tests.train.helpers import TINY, in_process, tiny, trained
from train.loggers import Mirror, Wandb
from train.runfolder import RunFolder


def records(path: Path):
    """The protobuf records of a .wandb file, which is framed as a LevelDB log: 32 KiB blocks, headers of 7 bytes."""
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7]) if left >= 7 else (0, 0)
        if kind == 0:
            at += left
            continue
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last of several
            yield protobuf.Record.FromString(parts)
            parts = b""


def offline_file(folder: Path) -> Path:
    (found,) = folder.glob("wandb/offline-run-*/*.wandb")
    return found


def key(item) -> str:
    return ".".join(item.nested_key) if item.nested_key else item.key


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """In a process of its own, so that wandb's service is not shared with the tests below."""
    config = tiny("logger=wandb", "logger.mode=offline")
    parent = tmp_path_factory.mktemp("wandb") / "my_sweep"
    process = in_process(config, parent)
    process.join()
    folder = RunFolder.of(config, parent)
    assert folder.state() == "finished"
    return folder


def test_offline_file_holds_identity_config_and_metrics(run):
    config = tiny()
    started, logged, history = None, {}, []
    for record in records(offline_file(run.path)):
        match record.WhichOneof("record_type"):
            case "run":
                started = record.run
                logged |= {key(u): json.loads(u.value_json) for u in record.run.config.update}
            case "config":
                logged |= {key(u): json.loads(u.value_json) for u in record.config.update}
            case "history":
                history.append({key(i): json.loads(i.value_json) for i in record.history.item})
    assert started is not None
    assert (started.run_id, started.run_group) == (config.digest(), "my_sweep")
    assert started.display_name == config.run_name()
    expected = config.values()
    assert logged["optimizer"] == expected["optimizer"]
    assert (logged["steps"], logged["model"]) == (12, expected["model"])
    rows = {r["step"]: r for r in run.metrics()}
    mirrored = {h["trainer/global_step"]: h for h in history if "trainer/global_step" in h}
    for step in (0, 3, 4, 8, 11):
        assert mirrored[step]["loss"] == pytest.approx(rows[step]["loss"], rel=1e-6)
    assert mirrored[8]["attention/block1/logit_max"] == pytest.approx(rows[8]["attention/block1/logit_max"])


def test_config_is_written_at_the_start(run):
    kinds = [r.WhichOneof("record_type") for r in records(offline_file(run.path))]
    assert kinds.index("config") < kinds.index("history")


@pytest.mark.parametrize(
    ("environment", "offline"),
    [
        ({}, True),
        ({"WANDB_API_KEY": "x" * 40}, False),
        ({"WANDB_API_KEY": "x" * 40, "WANDB_MODE": "offline"}, True),
    ],
)
def test_auto_mode_follows_the_key(monkeypatch, environment, offline):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Wandb().offline() is offline
    assert Wandb(mode="online").offline() is False
    assert Wandb(mode="offline").offline() is True


def test_losing_wandb_never_stops_a_run(tmp_path):
    """wandb's own process is killed under a run: it ends as it would have without W&B, with one line in its log."""
    config = tiny("logger=wandb", "logger.mode=offline", "steps=600")
    folder = RunFolder.of(config, tmp_path)
    process = in_process(config, tmp_path)
    killed = []
    while process.is_alive() and not killed:
        children = psutil.Process(process.pid).children(recursive=True) if psutil.pid_exists(process.pid) else []
        for child in children:
            if "wandb-core" in child.name() and list(folder.path.glob("wandb/offline-run-*/*.wandb")):
                child.send_signal(signal.SIGKILL)
                killed.append(child.pid)
        time.sleep(0.01)
    process.join()
    assert killed
    assert folder.state() == "finished"
    assert "the logger stopped" in (folder.path / "log.txt").read_text()
    alone = trained(tmp_path / "alone", "steps=600")
    assert folder.metrics_path.read_bytes() == alone.metrics_path.read_bytes()


def test_a_hanging_logger_holds_up_nothing(monkeypatch):
    """The build never returns: rows are taken at once, and `finish` gives up waiting."""
    monkeypatch.setattr("train.loggers.FINISH_SECONDS", 0.1)
    mirror = Mirror(lambda: time.sleep(3600), {})
    start = time.monotonic()
    for step in range(1000):
        mirror.row({"step": step, "loss": 1.0})
    mirror.finish("finished", {})
    assert time.monotonic() - start < 5


def test_run_name_and_hash_do_not_depend_on_the_logger():
    assert tiny("logger=wandb").run_name() == tiny("logger=none").run_name()


@pytest.mark.slow
def test_unreachable_server_costs_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "train", *TINY, "logger=wandb", "logger.mode=online", f"out={tmp_path}"],
        capture_output=True,
        text=True,
        env=os.environ | {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"},
    )
    assert done.returncode == 0
    assert "the logger stopped" in done.stderr
    assert "finished" in done.stdout
