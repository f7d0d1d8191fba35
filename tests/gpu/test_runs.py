"""Runs on a device, held against the same runs in fp32 on the CPU."""

import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from models.attention.mixing.base import ATTENTION
from tests.conftest import complete
from tests.train.helpers import TINY, assert_same_end, tiny, trained
from tests.train.run.test_resume import StopAt
from train.losses import LOSS
from train.optimizers import OPTIMIZER
from train.run.interrupt import Interrupted
from train.run.trainer import train
from train.runfolder.folder import RunFolder

CHOICES = (
    ["seed=0"]
    + [
        f"{axis}={name}"
        for axis, registry in (("attention", ATTENTION), ("optimizer", OPTIMIZER), ("loss", LOSS))
        for name in sorted(registry.choices)
    ]
    + ["watch.sharpness=true"]
)
"""The default, every mixer, optimizer and loss, and the probe that takes forward passes of its own."""
# At this learning rate no choice diverges in twelve steps, so that roundings stay roundings.
GENTLE = ["optimizer.lr=1e-3"]
CLOSE = {"fp32": 1e-3, "bf16": 0.1}
"""Largest difference of a loss of about 4 nats."""
LESS_CLOSE = {"attention=nap": 0.02, "optimizer=soap": 0.01, "loss=noisy_softmax": 0.02, "loss=sampled_softmax": 0.02}
"""The same in fp32 where another rounding changes more (on one CPU too, weights half a unit in the last place apart end
1e-3 apart in loss), and where the device draws numbers of its own."""


@cache
def on_cpu(choice: str) -> list[dict[str, Any]]:
    with TemporaryDirectory() as folder:
        return trained(Path(folder), *GENTLE, *complete(choice), "accelerator=cpu").metrics()


@pytest.mark.parametrize("choice", CHOICES)
def test_a_run_is_that_of_the_cpu(tmp_path, device, choice):
    """Trains in both precisions, with probes and validations."""
    expected = on_cpu(choice)
    for precision, close in CLOSE.items():
        run = trained(tmp_path, *GENTLE, *complete(choice), f"accelerator={device}", f"precision={precision}")
        rows = run.metrics()
        assert [row["step"] for row in rows] == [row["step"] for row in expected]
        for row, other in zip(rows, expected, strict=True):
            assert row.keys() == other.keys()
            for name in row.keys() & {"train/loss", "validation/loss"}:
                allowed = max(close, LESS_CLOSE.get(choice, 0))
                assert row[name] == pytest.approx(other[name], abs=allowed), (precision, row["step"], name)


@pytest.mark.parametrize("choice", ["seed=0", "precision=bf16", "attention=fox", "attention=mamba2", "optimizer=muon"])
def test_a_run_resumes_to_the_bit(tmp_path, device, monkeypatch, choice):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        way = [*complete(choice), f"accelerator={device}", "steps=24", "checkpoint_seconds=0"]
        uncut = trained(tmp_path / "uncut", *way)
        with suppress(Interrupted):
            train(tiny(*way), parent=tmp_path / "cut", callbacks=[StopAt(10)])
        cut = trained(tmp_path / "cut", *way)
    finally:
        torch.use_deterministic_algorithms(False)
    assert cut.status()["attempt"] == 2
    assert_same_end(cut, uncut)


@pytest.mark.parametrize("precision", CLOSE)
def test_a_compiled_run_agrees(tmp_path, device, precision):
    way = [*GENTLE, f"accelerator={device}", f"precision={precision}"]
    eager, compiled = (trained(tmp_path / how, *way, f"compile={how}").metrics() for how in ("false", "true"))
    for row, other in zip(compiled, eager, strict=True):
        for name in row.keys() & {"train/loss", "validation/loss"}:
            assert row[name] == pytest.approx(other[name], abs=CLOSE[precision]), (row["step"], name)


class NoTransfers(pl.Callback):
    """Makes a step that is no watch step fail if the host waits for the device, as for a value of it."""

    def __init__(self, device: str) -> None:
        self.on_gpu, self.guarded = device == "cuda", 0

    def on_train_batch_start(self, trainer, module, *_):
        if not module.watching(trainer.global_step):
            self.guarded += 1
            self._guard("error")

    def on_train_batch_end(self, *_):
        self._guard("default")

    def _guard(self, mode: str) -> None:
        if self.on_gpu:
            torch.cuda.set_sync_debug_mode(mode)


@pytest.mark.parametrize("choice", ["seed=0", "precision=bf16", "optimizer=muon", "attention=fox", "loss=tempnet"])
def test_no_value_reaches_the_host_between_watch_steps(tmp_path, device, choice):
    guard = NoTransfers(device)
    try:
        trained(tmp_path, *complete(choice), f"accelerator={device}", callbacks=[guard])
    finally:
        guard._guard("default")
    assert guard.guarded == 8  # of 12 steps; watch steps are 0, 4, 8 and the last
    if guard.on_gpu:
        guard._guard("error")
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device=device).item()
        guard._guard("default")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_devices_are_one_big_batch(tmp_path, device, strategy):
    """Over NCCL on GPUs, over gloo on the CPU."""
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("torch finds one CUDA device, NCCL needs two")
    way = [f"accelerator={device}", "devices=2", f"strategy={strategy}"]
    command = [sys.executable, "-m", "train", *TINY, *way, f"out={tmp_path / 'two'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    one, two = trained(tmp_path / "one", f"accelerator={device}"), RunFolder(tmp_path / "two" / tiny(*way).run_name())
    for row, other in zip(two.metrics(), one.metrics(), strict=True):
        for name in row.keys() & {"train/loss", "validation/loss"}:
            assert row[name] == pytest.approx(other[name], abs=CLOSE["fp32"]), (row["step"], name)
