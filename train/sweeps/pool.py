"""Trains runs in parallel processes, one per core or GPU unless the launcher says otherwise."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from train.config.launcher import Local
from train.config.schema import Config
from train.run.interrupt import STOP, Interrupted, Stopped
from train.run.process import environment, stop_held
from train.runfolder.folder import ENDED, RunFolder

STOP_SECONDS = 20.0
CODE = Path(__file__).parents[2]
"""The folder of our packages."""
LONGEST_TEMPORARY = 70
"""Most characters of the temporary folder. A socket's path has at most 103 on macOS, and multiprocessing adds 33."""


def slots(config: Config) -> list[str | None]:
    """Returns one entry per concurrent process: the GPU that it sees, or None for CPU cores."""
    import torch

    asked = config.launcher.runs_at_once if isinstance(config.launcher, Local) else None
    if config.accelerator in ("auto", "cuda") and torch.cuda.is_available():
        gpus = visible_gpus(torch.cuda.device_count())
        return [gpus[i % len(gpus)] for i in range(asked or len(gpus))]
    return [None] * (asked or max(1, cores() // max(1, config.threads)))


def shape(config: Config) -> str:
    """Returns what runs that share a process have in common: all but seed, peak learning rate, name and launcher."""
    values = config.values()
    for name in ("seed", "name", "out", "launcher"):
        del values[name]
    del values["optimizer"]["lr"]
    return json.dumps(values, sort_keys=True, default=str)


def cores() -> int:
    """Returns the number of CPU cores that this process may use, or all where the system does not say, as on macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_room_for_sockets() -> None:
    """Lets multiprocessing use a short temporary folder if the system's is too long for the paths of its sockets."""
    if len(tempfile.gettempdir()) <= LONGEST_TEMPORARY:
        return
    given = tempfile.tempdir
    tempfile.tempdir = next((folder for folder in ("/tmp", "/var/tmp") if os.access(folder, os.W_OK)), given)
    try:
        util.get_temp_dir()  # Creates and remembers the folder.
    finally:
        tempfile.tempdir = given


def visible_gpus(count: int) -> list[str]:
    """Returns a value of CUDA_VISIBLE_DEVICES for each GPU, from those that the scheduler has assigned if it is set."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in given.split(",") if name.strip()][:count] or [str(i) for i in range(count)]


def work(
    values: dict[str, Any],
    parent: Path,
    gpu: str | None,
    patience: float = 0.0,
    again: bool = False,
    more: Sequence[dict[str, Any]] = (),
) -> None:
    """Trains one run in this process and exits; the output goes to log.txt in the run's folder.

    `more` are the values of runs to train together with it, whose output goes to the same file.
    """
    try:
        sys.exit(_work([values, *more], parent, gpu, patience, again))
    except KeyboardInterrupt:
        sys.exit(130)


def _work(values: Sequence[dict[str, Any]], parent: Path, gpu: str | None, patience: float, again: bool) -> int:
    with stop_held():
        # The forkserver ignores these signals. Before training starts, they should end the process.
        for signum in STOP:
            signal.signal(signum, signal.default_int_handler)
        from train.config.compose import of_values
        from train.run.trainer import train

        if gpu is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        configs = [of_values(of_run) for of_run in values]
        folder = RunFolder(parent / configs[0].run_name())
        folder.path.mkdir(parents=True, exist_ok=True)
        log = os.open(folder.path / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for config in configs[1:]:
            path = parent / config.run_name() / "log.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as other:
                other.write(f"trains in one process with {folder.path.name}: see its log.txt\n")
    if len(configs) > 1:
        from train.run.packed import train_pack

        ends = train_pack(configs, parent, patience, again)
        failed = any(end is not None and not isinstance(end, Interrupted | Stopped) for end in ends)
        return 130 if any(isinstance(end, Interrupted) for end in ends) else int(failed)
    try:
        train(configs[0], parent=parent, patience=patience, again=again)
    except Interrupted:
        return 130
    except Stopped:
        return 0
    return 0


@dataclass
class Pool:
    """Trains the waiting runs in processes, at most one per free slot, each for one run or, packed, for several."""

    folder: Path
    free: list[str | None]
    waiting: list[Config]
    patience: float = 0.0
    again: bool = False
    """Whether runs that have ended are trained again."""
    running: dict[str, tuple[Any, str | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Forking from a server that has already imported everything takes 0.1 s per run instead of 4 s.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["train.sweeps.preload"])
        if self.waiting:
            # Its libraries read the number of threads when they are imported.
            threads = str(max(1, self.waiting[0].threads))
            make_room_for_sockets()
            # The server would be ended by a signal that arrives before it can ignore it. Python's own helper is started
            # first, because that unblocks the signals.
            resource_tracker.ensure_running()
            kept = {} if Path.cwd() == CODE else {"PYTHONSAFEPATH": "1"}  # A train.py there is not ours.
            threads = os.environ.get("OMP_NUM_THREADS", threads)
            with environment(OMP_NUM_THREADS=threads, **kept), stop_held():
                forkserver.ensure_running()

    def step(self) -> list[str]:
        """Starts runs in free slots, and returns the names of the runs that have ended since the last call."""
        dead = {process: slot for process, slot in self.running.values() if not process.is_alive()}
        ended = [name for name, (process, _) in self.running.items() if process in dead]
        for name in ended:
            process, _ = self.running.pop(name)
            process.join()
            self._record_failure(name, process.exitcode)
        self.free += dead.values()
        while self.free and self.waiting:
            (first, *others), slot = self._next(), self.free.pop(0)
            more = [config.values() for config in others]
            given = (first.values(), self.folder, slot, self.patience, self.again, more)
            process = self.context.Process(target=work, args=given)
            process.start()
            self.running |= {config.run_name(): (process, slot) for config in (first, *others)}
        return ended

    def _next(self) -> list[Config]:
        """Takes the first waiting run and, if its launcher packs runs, those to train with it from the list.

        Runs are spread over all slots rather than packed as densely as they may be.
        """
        first = self.waiting.pop(0)
        most = first.launcher.runs_per_process if isinstance(first.launcher, Local) else 1
        if most == 1:
            return [first]
        same = [config for config in self.waiting if shape(config) == shape(first)]
        slots = len(self.free) + len(self._processes())
        others = same[: min(most, -(-(len(same) + 1) // slots)) - 1]
        self.waiting = [config for config in self.waiting if not any(config is other for other in others)]
        return [first, *others]

    def _processes(self) -> set[Any]:
        return {process for process, _ in self.running.values()}

    def wait(self, seconds: float) -> None:
        """Returns when a run has ended, at the latest after `seconds`."""
        wait([process.sentinel for process in self._processes()], seconds)

    def _record_failure(self, name: str, exitcode: int) -> None:
        """Marks the run as failed if its process died without doing so."""
        folder = RunFolder(self.folder / name)
        if folder.is_claimed():  # A process that outlived an earlier, killed sweep still trains it.
            return
        with suppress(OSError):  # A full disk or a broken folder of one run should not stop the others.
            if exitcode < 0 and folder.state() in ("running", "pending"):
                folder.set_status("failed", reason=f"killed by {signal.Signals(-exitcode).name}")
            elif exitcode == 1 and folder.state() not in (*ENDED, "failed"):
                folder.set_status("failed", reason=f"exit code 1, see {folder.path / 'log.txt'}")

    def interrupt(self, name: str) -> None:
        """Asks one run, and those packed with it, to write a checkpoint and to end."""
        process, _ = self.running[name]
        if process.is_alive():
            os.kill(process.pid, signal.SIGTERM)

    def stop(self, seconds: float = STOP_SECONDS, signum: int = signal.SIGTERM) -> None:
        """Sends every process the signal, on which it writes a checkpoint, and kills those left after `seconds`."""
        for process in self._processes():
            if process.is_alive():
                os.kill(process.pid, signum)
        deadline = time.monotonic() + seconds
        for process in self._processes():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
