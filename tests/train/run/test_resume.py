"""An interrupted and resumed run ends bit-identically to an uninterrupted one."""

import os
import signal
import time

import lightning.pytorch as pl
import pytest
import torch

from tests.train.helpers import assert_same_end, in_process, tiny, trained
from train.optimizers import OPTIMIZER
from train.run.interrupt import Interrupted
from train.run.trainer import train
from train.runfolder.folder import RunFolder

LONG = ["steps=160", "watch_every=5", "checkpoint_seconds=0", "accumulate=2", "eval_every=30"]


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("uncut"), *LONG)


def wait_for_step(folder: RunFolder, step: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if folder.metrics_path.exists() and f'"step": {step},' in folder.metrics_path.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached")


def test_kill_at_three_moments(tmp_path, uncut):
    """The last time, in the middle of a line."""
    config = tiny(*LONG)
    folder = RunFolder(tmp_path / config.run_name())
    for step in (0, 40, 85):
        process = in_process(config, tmp_path)
        wait_for_step(folder, step)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert folder.state() == "running", "nothing could be written any more"
    assert folder.status()["attempt"] == 3
    with folder.metrics_path.open("a") as file:
        file.write('{"step": 9')
    train(config, parent=tmp_path)
    assert folder.status()["attempt"] == 4
    assert_same_end(folder, uncut)


@pytest.mark.slow
def test_kill_before_the_first_checkpoint(tmp_path, uncut):
    config = tiny(*LONG, "checkpoint_seconds=1000")
    folder = RunFolder(tmp_path / config.run_name())
    process = in_process(config, tmp_path)
    wait_for_step(folder, 50)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not folder.checkpoint.exists()
    train(config, parent=tmp_path)
    assert_same_end(folder, uncut)


@pytest.mark.parametrize("signum", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT])
def test_signal_leaves_a_checkpoint_between_watch_steps(tmp_path, uncut, signum):
    config = tiny(*LONG, "checkpoint_seconds=1000")
    folder = RunFolder(tmp_path / config.run_name())
    process = in_process(config, tmp_path)
    wait_for_step(folder, 42)
    os.kill(process.pid, signum)
    process.join(30)
    assert process.exitcode == 130
    assert folder.state() == "pending"
    assert signum.name in folder.status()["reason"]
    assert torch.load(folder.checkpoint, weights_only=True)["global_step"] > 42
    train(config, parent=tmp_path)
    assert_same_end(folder, uncut)


def test_finished_run_is_not_trained_again(tmp_path):
    folder = trained(tmp_path)
    before = (folder.path / "weights.pt").stat().st_mtime_ns
    summary = folder.summary()
    assert train(tiny(), parent=tmp_path) == summary
    assert (folder.path / "weights.pt").stat().st_mtime_ns == before


class StopAt(pl.Callback):
    """Sends the run a scheduler's signal after `step` steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


# SOAP's eigenbases and the buffer of critical momenta change within the run.
OPTIMIZERS = {name: [] for name in OPTIMIZER.choices} | {
    "adamw": ["optimizer.update_clip=1"],
    "schedule_free": ["schedule=constant"],
    "soap": ["optimizer.precondition_frequency=4"],
    "adam_cm": ["optimizer.topc=3"],
}


FAST = ("adamw", "muon", "schedule_free")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in OPTIMIZERS]
)
def test_every_optimizer_goes_on_as_if_it_had_not_stopped(tmp_path, name):
    """Weights and rows are bit-identical after three interruptions, with validations and QK-clip in between."""
    overrides = [f"optimizer={name}", *OPTIMIZERS[name], "qk_norm=none", "optimizer.qk_clip=0.3", "accumulate=2"]
    overrides += ["steps=24", "watch_every=5", "eval_every=7"]
    uncut, config = trained(tmp_path / "uncut", *overrides), tiny(*overrides)
    for stop in (1, 9, 13):
        with pytest.raises(Interrupted):
            train(config, parent=tmp_path / "cut", callbacks=[StopAt(stop)])
    train(config, parent=tmp_path / "cut")
    assert any(row.get("qk_clip/heads", 0) > 0 for row in uncut.metrics())
    assert_same_end(RunFolder(tmp_path / "cut" / config.run_name()), uncut)
