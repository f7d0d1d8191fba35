import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import yaml_values
from tests.train.helpers import TINY, in_process, tiny, trained
from tests.train.loggers.wandb_files import key, records
from train.loggers.mirror import MOST_NAMES, Mirror, mirrored
from train.loggers.wandb import Wandb
from train.runfolder.folder import RunFolder


def offline_file(folder: Path) -> Path:
    (found,) = folder.glob("wandb/offline-run-*/*.wandb")
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """In a process of its own, so that wandb's service is not shared with the tests below."""
    config = tiny("logger=wandb", "logger.mode=offline")
    parent = tmp_path_factory.mktemp("wandb") / "my_sweep"
    process = in_process(config, parent)
    process.join()
    folder = RunFolder(parent / config.run_name())
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
    assert started.job_type == "train"
    assert started.display_name == config.run_name()
    expected = config.values()
    assert logged["optimizer"] == expected["optimizer"]
    assert (logged["steps"], logged["model"]) == (12, expected["model"])
    rows = {r["step"]: r for r in run.metrics()}
    mirrored = {h["trainer/global_step"]: h for h in history if "trainer/global_step" in h}
    for step in (0, 3, 4, 8, 11):
        assert mirrored[step]["train/loss"] == pytest.approx(rows[step]["train/loss"], rel=1e-6)
    assert mirrored[8]["attention/block1/logit_max"] == pytest.approx(rows[8]["attention/block1/logit_max"])


def names(row) -> set[str]:
    values, lists = mirrored(row)
    return values.keys() | lists.keys()


def watch_row(parent, *overrides):
    return max(trained(parent, "steps=1", "eval_batches=1", *overrides).metrics(), key=len)


@pytest.mark.parametrize("size", ["4.8B", "w512-d96"])
def test_the_largest_models_stay_below_10_000_names(tmp_path, size):
    """A step of a narrow model with the depth and heads of the size: names don't depend on width."""
    shape = yaml_values("model", size)
    depth, heads = shape["depth"], shape["heads"]
    row = watch_row(tmp_path, f"model.depth={depth}", f"model.heads={heads}", f"model.width={2 * heads}")
    sent = names(row)
    assert len(sent) < MOST_NAMES < 10_000
    assert sent == row.keys() - {"step"}
    assert f"attention/block{depth - 1}/logit_max_by_head" in mirrored(row)[1]
    fewer = watch_row(tmp_path, f"model.depth={depth}", "model.heads=2", "model.width=16")
    assert sent == names(fewer), "names a head"


def test_values_of_tensors_become_histograms_over_blocks_where_names_are_too_many(tmp_path):
    """96 blocks with the most tensors that the axes give."""
    most = ["norm=gated", "placement=peri", "mlp=swiglu", "layer_scale=1e-4", "value_residual=learnable"]
    row = watch_row(tmp_path, *most, "reparametrization=sigma", "model.depth=2")
    deep = {re.sub("block1", f"block{b}", k): v for b in range(1, 96) for k, v in row.items()} | row
    kept = dict(deep)
    values, lists = mirrored(deep)
    assert deep == kept
    assert len(deep) > 10_000 > MOST_NAMES >= len(values) + len(lists)
    over_blocks = sorted(deep[f"parameter/block{b}/mlp.up/rms"] for b in range(96))
    assert sorted(lists["parameter/blocks/mlp.up/rms"]) == over_blocks
    assert values["update/block95/mlp.up/rms"] == deep["update/block95/mlp.up/rms"]
    assert values["parameter/head/rms"] == row["parameter/head/rms"]


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
    folder = RunFolder(tmp_path / config.run_name())
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
    monkeypatch.setattr("train.loggers.mirror.FINISH_SECONDS", 0.1)
    mirror = Mirror(lambda: time.sleep(3600), {})
    start = time.monotonic()
    for step in range(1000):
        mirror.row({"step": step, "train/loss": 1.0})
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
