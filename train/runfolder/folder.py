"""The run folder: one run's config, state, metrics and checkpoints. It alone suffices to redo every figure.

config.yaml     resolved config
status.json     pending | running | finished | diverged | failed, with host, pid, commit, versions, wall time
metrics.jsonl   a row a recorded step, a pure function of the config (NaN and Infinity as Python's json writes them)
timing.jsonl    wall time and tokens per second, a row a watch step
summary.json    the results, written at the end
last.ckpt       the newest checkpoint
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import socket
import subprocess
import time
import zipfile
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from conf.axis import ConfigError

ENDED = ("finished", "diverged")


def write_atomically(path: Path, text: str) -> None:
    """The file is the old one or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def save_atomically(path: Path, tensors: Mapping[str, Any]) -> None:
    """The same for tensors; on a full disk OSError, as for text."""
    import torch

    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(tensors, file)
    except RuntimeError as error:  # torch's writer trips over its own closing when the file can't be written
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} when there is none or it is damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a last line that was cut off is left out."""
    rows = []
    if path.exists():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(keepends=True), 1):
            if not line.endswith("\n"):
                break
            try:
                rows.append(json.loads(line))
            except ValueError:
                raise ConfigError(
                    f"{path}: line {number} is damaged: delete the folder to train the run again"
                ) from None
    return rows


@cache
def commit() -> str | None:
    """The git commit of this code, with + when files differ from it."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else None


def slurm_task() -> str | None:
    """The task of a Slurm array that this process belongs to, 17_0, or its job, or none."""
    job, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{task}" if job and task else os.environ.get("SLURM_JOB_ID")


def unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"out={folder}: {error.strerror}: choose a folder that can be written")


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
        status = self.status() | {"state": state, "time": time.time(), **details}
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
