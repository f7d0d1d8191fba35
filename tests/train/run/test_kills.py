"""SIGKILL at random moments while data is prepared, trained on and reported: no file is corrupt, no result lost."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.axis import checked
from data.prepare import open_prepared
from tests.train.helpers import assert_same_end, tiny
from train.config.compose import from_file
from train.config.schema import Config
from train.report import report
from train.run.trainer import train
from train.runfolder.files import read_rows
from train.runfolder.folder import RunFolder

# Large enough for each phase to take a while: 5 chunks of tokens, 40 checkpoints of half a megabyte.
LONG = [
    "data.tokens=4000000", "model.width=64", "steps=80", "watch_every=2", "checkpoint_seconds=0", "eval_every=20",
]  # fmt: skip


def command(values: dict[str, Any], parent: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    config = checked(Config, values)
    train(config, parent=parent)
    report(RunFolder(parent / config.run_name()).path)


def started(config: Config, parent: Path) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train.sweeps.preload", "train.report"])
    process = context.Process(target=command, args=(config.values(), parent))
    process.start()
    return process


# By phase: the file after which the random wait begins, and the longest wait in seconds.
Moment = tuple[Callable[[Path, RunFolder], bool], float]
MOMENTS: dict[str, Moment] = {
    "data": (lambda cache, run: any(cache.glob("*/progress.json")), 0.3),
    "data's manifest": (lambda cache, run: any(cache.glob("*/train.bin")), 0.005),
    "start": (lambda cache, run: run.state() == "running", 0.5),
    "metrics": (lambda cache, run: run.metrics_path.exists(), 1.5),
    "checkpoint": (lambda cache, run: run.checkpoint.exists() and run.checkpoint.with_suffix(".tmp").exists(), 0.0),
    "end": (lambda cache, run: (run.path / "weights.tmp").exists() or (run.path / "weights.pt").exists(), 0.01),
    "report": (lambda cache, run: (run.path / "report").is_dir(), 1.0),
}
KILLS = ["data"] * 4 + ["data's manifest"] + ["start"] * 2 + ["metrics"] * 4 + ["checkpoint"] * 4
KILLS += ["end"] * 2 + ["report"] * 3


def assert_nothing_is_corrupt(cache: Path, run: RunFolder) -> None:
    """Asserts that every file is complete; partial ones must have temporary names."""
    for path in (*run.path.glob("*.json"), *cache.glob("*/*.json")):
        assert isinstance(json.loads(path.read_text()), dict), path
    for path in cache.glob("*/manifest.json"):
        open_prepared(path.parent)
    if (run.path / "config.yaml").exists():
        from_file(run.path / "config.yaml")
    run.sound_checkpoint()
    steps = [row["step"] for row in run.metrics()]
    assert steps == list(range(-1, len(steps) - 1))
    read_rows(run.timing_path)
    if (run.path / "weights.pt").exists():
        torch.load(run.path / "weights.pt", weights_only=True)
    if run.state() == "finished":
        assert run.summary()["state"] == "finished"


def texts(folder: Path) -> dict[str, bytes]:
    """Returns the files of a report without the times and paths on its pages."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".html"}


@pytest.mark.slow
def test_twenty_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, hit = random.Random(0), []
    whole = tiny(*LONG, f"cache={tmp_path / 'whole' / 'cache'}")
    process = started(whole, tmp_path / "whole")
    process.join()
    uncut = RunFolder(tmp_path / "whole" / whole.run_name())
    assert uncut.state() == "finished"
    for number, name in enumerate(KILLS):
        place = tmp_path / str(number)
        config = tiny(*LONG, f"cache={place / 'cache'}")
        run = RunFolder(place / config.run_name())
        there, longest = MOMENTS[name]
        process = started(config, place)
        while process.is_alive() and not there(place / "cache", run):
            time.sleep(0.0002)
        time.sleep(draw.random() * longest)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, name
        left = sorted(p.name for p in place.rglob("*") if p.suffix in (".tmp", ".partial") or "progress" in p.name)
        hit.append(f"{name}: {run.state()}, step {len(run.metrics()) - 2}, half-written: {', '.join(left) or 'none'}")
        assert_nothing_is_corrupt(place / "cache", run)
        process = started(config, place)
        process.join()
        assert process.exitcode == 0
        assert_same_end(run, uncut)
        assert texts(run.path / "report") == texts(uncut.path / "report")
        for split in ("train", "validation"):
            (ours,), (theirs,) = ((p / "cache").glob(f"*/{split}.bin") for p in (place, tmp_path / "whole"))
            assert ours.read_bytes() == theirs.read_bytes()
        assert not list(place.rglob("*.tmp"))
    with capsys.disabled():
        print("", *hit, sep="\n  ")
