"""Tiny runs that train for real."""

import importlib
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import FEW_STEPS, composer
from train.cli.terminal import exit_with
from train.config.schema import Config
from train.run.trainer import train
from train.runfolder.folder import RunFolder
from train.sweeps.local import run
from train.sweeps.plan import plan
from train.sweeps.pool import work

# A synthetic language of 64 tokens that is prepared instantly and learnt in a few steps.
TINY = [
    *FEW_STEPS, "data=synthetic", "data.vocab_size=64", "data.tokens=100000", "data.validation_tokens=20000",
    "logger=none", "progress=false", "context=16", "batch_size=8", "steps=12", "watch_every=4", "eval_batches=2",
    "model.width=16", "model.depth=2", "model.heads=2", "model.name=tiny", "threads=1",
]  # fmt: skip


def tiny(*overrides: str) -> Config:
    return composer().config([*TINY, *overrides])


def trained(parent: Path, *overrides: str, **more: Any) -> RunFolder:
    """Trains a tiny run to its end and returns its folder."""
    config = tiny(*overrides)
    train(config, parent=parent, **more)
    return RunFolder(parent / config.run_name())


def swept(*overrides: str) -> int:
    """Runs a sweep in this process and returns its exit code."""
    return run(plan(overrides))


def call(command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Runs a command in this process like `python -m`, and returns its exit code and output."""
    module, *arguments = command
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    code: Any = 0
    try:
        found = importlib.import_module(module)
        main = found if hasattr(found, "main") else importlib.import_module(f"{module}.__main__")
        exit_with(main.main)
    except SystemExit as stop:
        code = stop.code or 0
    out, errors = capsys.readouterr()
    return code, out + errors


def process_state() -> dict[str, Any]:
    """Returns everything of this process that nothing may change for good."""
    _, keys, *position = np.random.get_state()
    return {
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "handlers": {s.name: signal.getsignal(s) for s in signal.Signals},
        "random": random.getstate(),
        "numpy's random": (keys.tolist(), position),
        "torch's random": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


OF_MACHINE = ("seconds", "train/tokens_per_second", "train/flops_per_second", "peak_memory_bytes")
"""Entries of a summary that are not a function of the config."""


def assert_same_end(cut: RunFolder, uncut: RunFolder, but: Sequence[str] = ()) -> None:
    """Weights, metrics and summary to the bit, `but` some of its entries and wall time; the summary has the state."""
    weights, expected = (torch.load(f.path / "weights.pt", weights_only=True) for f in (cut, uncut))
    assert weights.keys() == expected.keys()
    # A diverged run may end with NaN in its weights.
    torch.testing.assert_close(weights, expected, rtol=0, atol=0, equal_nan=True)
    assert cut.metrics_path.read_bytes() == uncut.metrics_path.read_bytes()
    ours, theirs = cut.summary(), uncut.summary()
    for summary in (ours, theirs):
        summary.pop("mfu", None)  # On a GPU.
        for name in (*OF_MACHINE, *but):
            del summary[name]
    assert ours == theirs, {k: (ours.get(k), theirs.get(k)) for k in ours | theirs if ours.get(k) != theirs.get(k)}


def in_process(config: Config, parent: Path) -> Any:
    """Starts the run in a process like a sweep, so that it can be killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.sweeps.preload"])
    process = context.Process(target=work, args=(config.values(), parent, None))
    process.start()
    return process
