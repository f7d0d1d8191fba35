"""The run folder: one run's config, state, metrics and checkpoints. It alone suffices to redo every figure.

config.yaml     resolved config
status.json     pending | running | finished | diverged | failed, with format, host, pid, commit, versions, wall time
metrics.jsonl   a row a recorded step, a pure function of the config (NaN and Infinity as Python's json writes them)
timing.jsonl    wall time, tokens and FLOPs per second, a row a watch step
summary.json    the results, written at the end
last.ckpt       the newest checkpoint
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import socket
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from conf.axis import ConfigError
from train.runfolder.files import read_json, read_rows, unwritable, write_atomically
from train.runfolder.provenance import commit, slurm_task

ENDED = ("finished", "diverged")

FORMAT = 2
"""Of a run folder: names of metrics, of the summary's values and of the status' ones. Format 1 didn't say so."""


def is_run(path: Path) -> bool:
    """Whether it is a run's folder, not a sweep's."""
    return (path / "config.yaml").exists() and not (path / "sweep.json").exists()


def require_format(runs: Iterable[RunFolder], folder: Path) -> None:
    """ConfigError where one of the runs has another format than this code's; `folder` is what is to be migrated."""
    for run in runs:
        status = run.status()
        if status and status.get("format", 1) != FORMAT:
            raise ConfigError(
                f"{run.path} was written by an earlier version, which named its metrics differently: "
                f"python -m train.migrate {folder}"
            )


class RunFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "last.ckpt"
        self.metrics_path = path / "metrics.jsonl"
        self.timing_path = path / "timing.jsonl"

    @cached_property
    def _lock(self) -> FileLock:
        return FileLock(self.path / ".lock")

    def claim(self, config_yaml: str, patience: float = 0.0) -> None:
        """Makes the folder this process' own until `release`.

        ConfigError when another process trains in it and still does after `patience` seconds: one on a node that the
        scheduler has given up may live on for a while.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=patience)
            write_atomically(self.path / "config.yaml", config_yaml)
        except Timeout:
            raise ConfigError(f"{self.path}: process {self.status().get('pid')} is training this run already") from None
        except OSError as error:
            raise unwritable(self.path.parent, error) from None

    def is_claimed(self) -> bool:
        """Whether a process trains in it, of those that this machine knows."""
        try:
            with self._lock.acquire(timeout=0):
                return False
        except Timeout:
            return True
        except OSError:
            return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from training in the folder meanwhile; ConfigError where one does."""
        try:
            with self._lock.acquire(timeout=0):
                yield
        except Timeout:
            raise ConfigError(f"{self.path}: process {self.status().get('pid')} is training this run") from None

    def sound_checkpoint(self) -> Path | None:
        """The checkpoint to go on from, None where there is none; ConfigError where it isn't what was written.

        torch reads altered tensors without a word, though its files have checksums.
        """
        import torch

        if not self.checkpoint.exists():
            return None
        try:
            with zipfile.ZipFile(self.checkpoint) as file:
                altered = file.testzip()
            torch.load(self.checkpoint, map_location="cpu", weights_only=True, mmap=True)
        except (zipfile.BadZipFile, EOFError, RuntimeError, pickle.UnpicklingError) as error:
            altered = " ".join(str(error).split())[:120]
        if altered:
            raise ConfigError(
                f"{self.checkpoint} is not what was written ({altered}): delete it to train the run from its start"
            )
        return self.checkpoint

    def release(self) -> None:
        self._lock.release()

    def status(self) -> dict[str, Any]:
        return read_json(self.path / "status.json")

    def state(self) -> str:
        return str(self.status().get("state", "pending"))

    def has_ended(self) -> bool:
        return self.state() in ENDED and bool(self.summary())

    def set_status(self, state: str, **details: Any) -> None:
        """Replaces status.json; details of an earlier attempt that aren't given again stay."""
        status = (self.status() or {"format": FORMAT}) | {"state": state, "time": time.time(), **details}
        write_atomically(self.path / "status.json", json.dumps(status, indent=1))

    def start(self) -> None:
        attempt = int(self.status().get("attempt", 0)) + 1
        self.set_status(
            "running",
            attempt=attempt,
            host=socket.gethostname(),
            pid=os.getpid(),
            commit=commit(),
            versions={"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "lightning", "hydra-core", "wandb")},
            reason=None,
            slurm=slurm_task(),
        )

    def rewind(self, step: int) -> None:
        """Drops the rows of steps from `step` on: they came after the checkpoint that the run resumes from.

        The row of step -1, the validation at initialisation, goes too when `step` is -1: nothing is kept then.
        """
        for path in (self.metrics_path, self.timing_path):
            if path.exists():
                kept = [row for row in read_rows(path) if row["step"] < step]
                write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))

    def append(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        with path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def seconds(self) -> float:
        """Wall time of the recorded steps, over all attempts."""
        return float(sum(row["seconds"] for row in read_rows(self.timing_path)))

    def summary(self) -> dict[str, Any]:
        return read_json(self.path / "summary.json")

    def metrics(self) -> list[dict[str, Any]]:
        return read_rows(self.metrics_path)
