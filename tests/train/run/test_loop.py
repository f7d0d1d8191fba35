"""The short training loop against Lightning's: the same run and the same checkpoints, to the bit."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from tests.train.helpers import assert_same_end, tiny, trained
from train.run.interrupt import Interrupted
from train.run.loop import EpochLoop
from train.run.trainer import train
from train.runfolder.folder import RunFolder


class StopAt(pl.Callback):
    """Sends the run SIGTERM after `step` steps, and notes which loop took them."""

    def __init__(self, step: int) -> None:
        self.step, self.short = step, set[bool]()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.short.add(trainer.fit_loop.epoch_loop.short)
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


class Full(StopAt):
    """Makes the trainer take Lightning's own loop, by a hook that the short one does not call."""

    def on_train_batch_start(self, *_: Any) -> None:
        pass


def cut(parent: Path, callback: StopAt, *overrides: str) -> dict[str, Any]:
    """Trains a run up to the callback's stop and returns its checkpoint."""
    config = tiny(*overrides)
    with pytest.raises(Interrupted):
        train(config, parent=parent, callbacks=[callback])
    return torch.load(RunFolder(parent / config.run_name()).checkpoint, weights_only=True)


@pytest.mark.parametrize("overrides", [[], ["precision=bf16"], ["optimizer=muon", "eval_every=5"]], ids=str)
def test_both_loops_train_the_same_run(tmp_path: Path, overrides: list[str]) -> None:
    short, full = StopAt(7), Full(7)
    ours, theirs = cut(tmp_path / "short", short, *overrides), cut(tmp_path / "full", full, *overrides)
    assert (short.short, full.short) == ({True}, {False})
    assert ours["global_step"] == theirs["global_step"] == 8  # the signal arrives after step 7
    assert ours["loops"] == theirs["loops"]
    ended = trained(tmp_path / "full", *overrides, callbacks=[Full(-1)])
    shutil.copytree(tmp_path / "short", tmp_path / "crossed")
    assert_same_end(trained(tmp_path / "crossed", *overrides, callbacks=[Full(-1)]), ended)
    assert_same_end(trained(tmp_path / "short", *overrides), ended)
    assert_same_end(trained(tmp_path / "uncut", *overrides), ended)


def test_accumulation_takes_lightnings_loop(tmp_path: Path) -> None:
    callback = StopAt(-1)
    trained(tmp_path, "accumulate=2", callbacks=[callback])
    assert callback.short == {False}


def test_the_loop_keeps_the_trainers_limits() -> None:
    trainer = pl.Trainer(max_steps=5, logger=False, enable_checkpointing=False)
    EpochLoop.install(trainer)
    assert trainer.fit_loop.max_steps == 5
