"""The run folder: config, state, metrics and checkpoint of one run, enough to redraw all its figures.

config.yaml     resolved config
status.json     pending | running | finished | diverged | failed | stopped, with format, data, host, pid, commit,
                versions, wall time
metrics.jsonl   one row per step, a pure function of the config (NaN and Infinity as Python's json writes them)
timing.jsonl    wall time, tokens and FLOPs per second, one row per watch step
warnings.jsonl  one row per sign of trouble that passed its threshold (config `watch`), with all probes of its step
summary.json    results, written at the end
measured.json   what was measured at the final weights after the end, each measurement once
last.ckpt       newest checkpoint
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import shutil
import socket
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from conf.axis import ConfigError
from train.runfolder.files import if_stale, read_json, read_rows, unwritable, write_atomically
from train.runfolder.provenance import commit, slurm_task

if TYPE_CHECKING:
    import torch

ENDED = ("finished", "diverged")

STOPPED = "stopped"
"""State of a run that was given up before its end; its status says why. The sweep that did so leaves it alone."""

FORMAT = 2
"""Version of the keys in metrics.jsonl, summary.json and status.json. Format 1 did not record its number."""


def is_run(path: Path) -> bool:
    """Returns whether this is a run folder, not a sweep folder."""
    return (path / "config.yaml").exists() and not (path / "sweep.json").exists()


def no_sweep(path: Path) -> ConfigError:
    """Returns the error for a folder that is no sweep, given to a command for sweeps: what it is and what to give."""
    if not path.is_dir():
        return ConfigError(f"{path}: no such folder: give the folder of a sweep, such as runs/qk_norm")
    if is_run(path):
        return ConfigError(f"{path} is the folder of a run: give that of a sweep, or use stabilab report {path}")
    inside = sorted(child.parent.name for child in path.glob("*/sweep.json"))
    if inside:
        return ConfigError(f"{path} holds sweeps and is none itself: give one of them, such as {path / inside[0]}")
    return ConfigError(f"{path} is neither a sweep folder (sweep.json) nor a run folder (config.yaml, metrics.jsonl)")


def began(status: Mapping[str, Any]) -> float | None:
    """Returns the seconds since 1970 at which the first attempt of a run began, None for a run that hasn't begun.

    Runs of earlier versions don't say it. For these it is the time of the status minus the length of the training,
    which is too late by the pauses between attempts.
    """
    if (known := status.get("began")) is not None:
        return float(known)
    return status["time"] - float(status.get("seconds") or 0.0) if "time" in status else None


def require_format(runs: Iterable[RunFolder], folder: Path) -> None:
    """Raises ConfigError if a run has another format than FORMAT. The message says to migrate `folder`."""
    for run in runs:
        status = run.status()
        if status and status.get("format", 1) != FORMAT:
            raise ConfigError(
                f"{run.path} was written by an earlier version, which named its metrics differently: "
                f"convert it with stabilab migrate {folder}"
            )


def require_trained(paths: Iterable[Path]) -> None:
    """Raises ConfigError for a folder without final weights, or with those of an earlier format."""
    for path in paths:
        if not (path / "weights.pt").exists():
            if (path / "sweep.json").exists():
                raise ConfigError(f"{path} is the folder of a sweep: give those of its runs, such as {path}/*")
            raise ConfigError(f"{path} has no weights.pt: pass the folder of a run that has ended")
        require_format([RunFolder(path)], path)


def damage_of(path: Path) -> str | None:
    """Returns what is wrong with a file of tensors, None if it is sound.

    The zip checksums are tested explicitly, because torch.load ignores them and would load altered tensors.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as file:
            damage = file.testzip()
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (zipfile.BadZipFile, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        damage = " ".join(str(error).split())[:120]
    return damage


class RunFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "last.ckpt"
        self.metrics_path = path / "metrics.jsonl"
        self.timing_path = path / "timing.jsonl"
        self.warnings_path = path / "warnings.jsonl"

    @cached_property
    def _lock(self) -> FileLock:
        return FileLock(self.path / ".lock")

    def claim(self, config_yaml: str, patience: float = 0.0) -> None:
        """Creates and locks the folder until `release`, and writes config.yaml.

        Raises ConfigError if the folder can't be written, or if another process still trains in it after `patience`
        seconds. A process on a node that Slurm has declared dead may live on for a while.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=patience)
            write_atomically(self.path / "config.yaml", config_yaml)
        except Timeout:
            raise self._is_training() from None
        except OSError as error:
            raise unwritable(self.path.parent, error) from None

    def is_claimed(self) -> bool:
        """Returns whether a process trains in the folder, as far as file locks on this machine can tell."""
        try:
            with self._lock.acquire(timeout=0):
                return False
        except Timeout:
            return True
        except OSError:
            return False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Locks the folder for the duration of a `with` block. Raises ConfigError if a process is training in it."""
        try:
            with self._lock.acquire(timeout=0):
                yield
        except Timeout:
            raise self._is_training() from None

    def _is_training(self) -> ConfigError:
        status = self.status()
        process = f"process {status.get('pid')} on {status.get('host')}"
        return ConfigError(
            f"{self.path}: {process} is training this run already: wait for its end{if_stale(self.path / '.lock')}"
        )

    def sound_checkpoint(self) -> Path | None:
        """Returns the checkpoint to resume from, or None. Raises ConfigError if the file is damaged."""
        if not self.checkpoint.exists():
            return None
        if damage := damage_of(self.checkpoint):
            raise ConfigError(f"{self.checkpoint} is damaged ({damage}): delete it to train the run from its start")
        return self.checkpoint

    def weights(self, finite: bool = True) -> dict[str, torch.Tensor]:
        """Returns the final weights. Raises ConfigError if they are damaged or, with `finite`, not all finite."""
        import torch

        path = self.path / "weights.pt"
        if damage := damage_of(path):
            raise ConfigError(f"{path} is damaged ({damage}): delete the folder to train the run again")
        found: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        if finite and not all(bool(weight.isfinite().all()) for weight in found.values()):
            step = self.summary().get("diverged_step")
            when = "" if step is None else f" at step {step}"
            raise ConfigError(f"{path}: its weights are not finite: the run diverged{when}: choose one that finished")
        return found

    def clear(self) -> None:
        """Deletes what an earlier training wrote. The log stays, which a sweep's process has opened."""
        for path in self.path.iterdir():
            if path.name not in (".lock", "config.yaml", "log.txt"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def release(self) -> None:
        self._lock.release()

    def status(self) -> dict[str, Any]:
        return read_json(self.path / "status.json")

    def state(self) -> str:
        return str(self.status().get("state", "pending"))

    def has_ended(self) -> bool:
        return self.state() in ENDED and bool(self.summary())

    def set_status(self, state: str, **details: Any) -> None:
        """Updates status.json: sets the state, the time and the given details, and keeps the other details."""
        status = (self.status() or {"format": FORMAT}) | {"state": state, "time": time.time(), **details}
        write_atomically(self.path / "status.json", json.dumps(status, indent=1))

    def start(self, data: str) -> None:
        """Sets the state to running, and records the attempt, the data, host, process, commit and package versions."""
        before = self.status()
        self.set_status(
            "running",
            attempt=int(before.get("attempt", 0)) + 1,
            began=began(before) or time.time(),
            data=data,
            host=socket.gethostname(),
            pid=os.getpid(),
            commit=commit(),
            versions={"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "lightning", "hydra-core", "wandb")},
            reason=None,
            slurm=slurm_task(),
        )

    def rewind(self, step: int) -> None:
        """Drops the rows from `step` on, which were written after the checkpoint that the run resumes from.

        A `step` of -1 drops all rows, including that of step -1, the validation at initialisation.
        """
        for path in (self.metrics_path, self.timing_path, self.warnings_path):
            if path.exists():
                kept = [row for row in read_rows(path) if row["step"] < step]
                write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))

    def append(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))

    def seconds(self) -> float:
        """Returns the wall time of the recorded steps in seconds, over all attempts."""
        return float(sum(row["seconds"] for row in read_rows(self.timing_path)))

    def summary(self) -> dict[str, Any]:
        return read_json(self.path / "summary.json")

    def measured(self) -> dict[str, Any]:
        """Returns the numbers that were measured at the final weights after the end, by name."""
        return read_json(self.path / "measured.json")

    def metrics(self) -> list[dict[str, Any]]:
        return read_rows(self.metrics_path)
