import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from conf.axis import ConfigError
from tests.train.helpers import TINY, in_process, tiny, trained
from tests.train.loggers.wandb_files import key, records
from train.loggers.detail import sent
from train.loggers.mirror import Mirror
from train.loggers.wandb import Wandb, has_key
from train.run.trainer import train
from train.runfolder.folder import RunFolder


def offline_file(folder: Path) -> Path:
    (found,) = folder.glob("wandb/offline-run-*/*.wandb")
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs in a separate process, so that it does not share wandb's service with the tests below."""
    config = tiny("logger=wandb", "logger.mode=offline", "watch.logit_max=1e-6")
    parent = tmp_path_factory.mktemp("wandb") / "my_sweep"
    process = in_process(config, parent)
    process.join()
    folder = RunFolder(parent / config.run_name())
    assert folder.state() == "finished"
    return folder


def test_a_warning_is_an_alert(run):
    (alert,) = [r.alert for r in records(offline_file(run.path)) if r.WhichOneof("record_type") == "alert"]
    assert alert.title == "logits at step 0"
    assert alert.text.startswith("step 0: largest attention logit ")


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
    assert logged["optimizer"] == json.loads(json.dumps(expected["optimizer"]))
    assert (logged["steps"], logged["model"]) == (12, expected["model"])
    rows = {r["step"]: r for r in run.metrics()}
    mirrored = {h["trainer/global_step"]: h for h in history if "trainer/global_step" in h}
    for step in (0, 3, 4, 8, 11):
        assert mirrored[step]["train/loss"] == pytest.approx(rows[step]["train/loss"], rel=1e-6)
    largest = max(rows[8][f"attention/block{block}/q_norm"] for block in (0, 1))
    assert mirrored[8]["attention/q_norm"] == pytest.approx(largest)
    assert {k for h in history for k in h} >= {"train/tokens_per_second", "train/flops_per_second"}
    size = {k: run.summary()[k] for k in ("N", "parameters", "tokens")}
    assert {k: logged[k] for k in size} == size
    assert logged["derived"] == run.summary()["derived"]
    assert logged["derived"]["optimizer"] == {"weight_decay": 1e-4}


def names(row, detail="summary") -> set[str]:
    values, lists = sent(row, detail)
    return values.keys() | lists.keys()


def deepened(row, depth):
    """Returns the row of a two-block model extended to `depth` blocks with different values."""
    deep = {k: v for k, v in row.items() if not re.search(r"block\d", k)}
    for block in range(depth):
        for name, value in row.items():
            if f"block{block % 2}/" in name:
                moved = [x + block for x in value] if isinstance(value, list) else value + block
                deep[name.replace(f"block{block % 2}/", f"block{block}/")] = moved
    return deep


def longest_row(parent, *overrides):
    most = ["norm=gated", "placement=peri", "layer_scale=1e-4", "eval_lengths=[2]", "watch.mean_mode=true"]
    return max(trained(parent, "steps=1", "eval_batches=1", *most, *overrides).metrics(), key=len)


@pytest.fixture(scope="module")
def watch_row(tmp_path_factory):
    """Returns a row of the config with the most tensors."""
    overrides = ["sink=off_by_one", "mlp=swiglu", "value_residual=learnable"]
    return longest_row(tmp_path_factory.mktemp("watch"), *overrides)


def assert_depth_adds_no_names(row):
    by_depth = {depth: names(deepened(row, depth)) for depth in (2, 12, 48)}
    assert {depth: len(found) <= 100 for depth, found in by_depth.items()} == dict.fromkeys(by_depth, True), by_depth
    assert by_depth[2] == by_depth[12] == by_depth[48]


def test_depth_adds_no_names(watch_row):
    assert_depth_adds_no_names(watch_row)
    assert len(names(deepened(watch_row, 48), "all")) > 5_000


@pytest.mark.parametrize(
    "overrides",
    [
        ["mlp=moe", "sink=off_by_one", "value_residual=learnable"],
        ["attention=mamba2", "attention.pattern=[self,softmax]", "sink=off_by_one"],
    ],
)
def test_other_blocks_stay_within_the_limit(tmp_path, overrides):
    """Experts and state spaces have probes of their own."""
    assert_depth_adds_no_names(longest_row(tmp_path, *overrides))


def test_blocks_and_tensors_are_summed_up(watch_row):
    row = deepened(watch_row, 12)
    values, lists = sent(row)
    of_blocks = {what: [row[f"attention/block{b}/{what}"] for b in range(12)] for what in ("q_norm", "support")}
    assert values["attention/q_norm"] == max(of_blocks["q_norm"])
    assert values["attention/support"] == pytest.approx(sum(of_blocks["support"]) / 12)
    assert values["attention/logit_max"] == watch_row["attention/logit_max"], "the recorder's own"
    assert lists["attention/blocks/entropy"] == [
        entropy for b in range(12) for entropy in row[f"attention/block{b}/entropy_by_head"]
    ]
    tensors = {k: v for k, v in row.items() if k.startswith("gradient/") and k.endswith("/rms")}
    assert lists["gradient/tensors/rms"] == list(tensors.values())
    assert values["gradient/rms"] == pytest.approx(sum(tensors.values()) / len(tensors))
    assert values["update/blocks/mlp.up/rms"] == max(row[f"update/block{b}/mlp.up/rms"] for b in range(12))
    assert values["adam/head/gradient_over_eps"] == row["adam/head/gradient_over_eps"]
    assert (values["train/loss"], values["gradient/norm"]) == (row["train/loss"], row["gradient/norm"])


def test_all_sends_every_name_besides(watch_row):
    assert names(watch_row, "all") == names(watch_row) | (watch_row.keys() - {"step"})


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


@pytest.mark.usefixtures("no_home")
def test_a_key_in_netrc_is_found_with_and_without_a_home_folder(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    assert not has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert has_key()
    monkeypatch.setenv("NETRC", str(tmp_path))  # A folder can't be read.
    assert not has_key()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("logger.project=lab/proj", r"^logger.project=lab/proj: string should match pattern"),
        ("logger.project=", r"^logger.project="),
        (f"logger.project={'x' * 129}", r"string should have at most 128 characters"),
        ("logger.entity='a#b'", r"^logger.entity=a#b: string should match pattern"),
    ],
)
def test_names_that_wandb_refuses_are_refused_before_the_run(override, said):
    with pytest.raises(ConfigError, match=said):
        tiny("logger=wandb", override)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WANDB_MODE", "sometimes", r"^WANDB_MODE: Input should be 'online', 'offline'"),
        ("WANDB_BASE_URL", "wandb", r"^WANDB_BASE_URL: Input should be a valid URL"),
        ("WANDB_API_KEY", " secret", r"^WANDB_API_KEY: API key cannot start or end with whitespace: ((?!secret).)*$"),
    ],
)
def test_variables_that_wandb_refuses_are_refused_before_the_run(tmp_path, monkeypatch, name, value, said):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        train(tiny("logger=wandb", f"out={tmp_path / 'new'}"))
    assert not (tmp_path / "new").exists()


def test_disabled_writes_nothing_for_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    train(tiny("logger=wandb", f"out={tmp_path}"))
    (folder,) = tmp_path.iterdir()
    assert (folder / "summary.json").exists()
    assert not (folder / "wandb").exists()
    assert Wandb(mode="offline").build(folder, run_id="x", run_name="x", group=None) is not None


def test_building_a_logger_leaves_the_environment_alone(tmp_path, monkeypatch):
    """Otherwise whatever this process starts later would be silent or offline as well."""
    for name in ("WANDB_MODE", "WANDB_SILENT"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    logger: Any = Wandb(mode="offline").build(tmp_path, run_id="x", run_name="x", group="g" * 200)
    assert (logger._offline, logger._wandb_init["mode"], logger._wandb_init["group"]) == (False, "offline", "g" * 128)
    # wandb's own process, which it starts once and stops at exit.
    after = dict(os.environ)
    assert after | {"WANDB_SERVICE": ""} == before | {"WANDB_SERVICE": ""}


def test_losing_wandb_never_stops_a_run(tmp_path):
    """If wandb's process is killed during a run, the run ends as without W&B, with one line in its log."""
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
        time.sleep(0.03)
    process.join()
    assert killed
    assert folder.state() == "finished"
    assert "the logger stopped" in (folder.path / "log.txt").read_text()
    alone = trained(tmp_path / "alone", "steps=600")
    assert folder.metrics_path.read_bytes() == alone.metrics_path.read_bytes()


def test_a_hanging_logger_holds_up_nothing(monkeypatch):
    """If `build` never returns, rows are still accepted at once and `finish` stops waiting."""
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


def test_histograms_of_numbers_that_are_not_finite_are_left_out():
    """wandb raises an error for them, after which nothing of a run would be sent."""
    row = {
        "step": 3, "train/loss": math.nan,
        "attention/block0/entropy": math.nan, "attention/block0/entropy_by_head": [math.nan, 1.0],
        "attention/block0/logit_max": 7.0, "attention/block0/logit_max_by_head": [5.0, 7.0],
        "attention/block1/logit_max": 9.0, "attention/block1/logit_max_by_head": [9.0, 8.0],
    }  # fmt: skip
    for detail in ("summary", "all"):
        values, lists = sent(row, detail)
        assert lists["attention/blocks/logit_max"] == [5, 7, 9, 8]
        assert not any("entropy" in name for name in lists)
        assert values["attention/logit_max"] == 9
        assert math.isnan(values["train/loss"])
        assert math.isnan(values["attention/entropy"])
