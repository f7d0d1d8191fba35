"""`python -m train.sweep experiment=NAME [overrides]`: every point of a grid, one process a core or GPU.

Finished runs are skipped and cut-off ones go on; a run that fails stops no other.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from conf.axis import ConfigError
from train.config.launcher import Slurm, in_full
from train.config.schema import Config
from train.run.interrupt import Interrupted
from train.runfolder.folder import ENDED, RunFolder, unwritable
from train.sweeps.live_table import Table
from train.sweeps.plan import Sweep, plan

STOP_SECONDS = 20.0


def slots(config: Config) -> list[str | None]:
    """One entry a process that runs at a time: the GPU it sees, or None for a core."""
    import torch

    if config.accelerator in ("auto", "cuda") and torch.cuda.is_available():
        return [*visible_gpus(torch.cuda.device_count())]
    return [None] * max(1, len(os.sched_getaffinity(0)) // max(1, config.threads))


def visible_gpus(count: int) -> list[str]:
    """What CUDA_VISIBLE_DEVICES has to be for each of them alone: a scheduler may have given others than the first."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in given.split(",") if name.strip()][:count] or [str(i) for i in range(count)]


def work(values: dict[str, Any], parent: Path, gpu: str | None, patience: float = 0.0) -> None:
    """Trains one run in a process of its own; what it prints goes to log.txt in its folder."""
    # The server that this is forked from ignores them; until a checkpoint can be written they end the process.
    for signum in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(signum, signal.default_int_handler)
    try:
        sys.exit(_work(values, parent, gpu, patience))
    except KeyboardInterrupt:
        sys.exit(130)


def _work(values: dict[str, Any], parent: Path, gpu: str | None, patience: float) -> int:
    from conf.axis import checked
    from train.run.trainer import train

    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    config = checked(Config, values)
    folder = RunFolder(parent / config.run_name())
    folder.path.mkdir(parents=True, exist_ok=True)
    log = os.open(folder.path / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        train(config, parent=parent, patience=patience)
    except Interrupted:
        return 130
    return 0


@dataclass
class Pool:
    """Runs the processes of a sweep, at most one a slot."""

    folder: Path
    free: list[str | None]
    waiting: list[Config]
    patience: float = 0.0
    running: dict[str, tuple[Any, str | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Children are forked from a server that has imported everything already: 0.1 s a run instead of 4 s.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["train.deaf", "train.sweeps.preload"])

    def step(self) -> list[str]:
        """Starts what fits; the names of the runs that ended since the last call."""
        ended = [name for name, (process, _) in self.running.items() if not process.is_alive()]
        for name in ended:
            process, slot = self.running.pop(name)
            process.join()
            self.free.append(slot)
            self._note_death(name, process.exitcode)
        while self.free and self.waiting:
            config, slot = self.waiting.pop(0), self.free.pop(0)
            process = self.context.Process(target=work, args=(config.values(), self.folder, slot, self.patience))
            process.start()
            self.running[config.run_name()] = (process, slot)
        return ended

    def _note_death(self, name: str, exitcode: int) -> None:
        folder = RunFolder(self.folder / name)
        if folder.is_claimed():  # by a process of a sweep that was killed itself: what it says counts
            return
        with suppress(OSError):  # of one run's folder, or of a full disk: no reason to stop the others
            if exitcode < 0 and folder.state() in ("running", "pending"):
                folder.set_status("failed", reason=f"killed by {signal.Signals(-exitcode).name}")
            elif exitcode == 1 and folder.state() not in (*ENDED, "failed"):
                folder.set_status("failed", reason=f"exit code 1, see {folder.path / 'log.txt'}")

    def stop(self, seconds: float = STOP_SECONDS, signum: int = signal.SIGTERM) -> None:
        """Asks every process for a checkpoint and waits for it."""
        for process, _ in self.running.values():
            if process.is_alive():
                os.kill(process.pid, signum)
        deadline = time.monotonic() + seconds
        for process, _ in self.running.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()


def launch(sweep: Sweep) -> int:
    """Trains the sweep here or submits it, as its launcher says; the exit code."""
    launcher = sweep.configs[0].launcher
    if any(config.launcher != launcher for config in sweep.configs):
        raise ConfigError("launcher: a sweep has one, its runs can't differ in it")
    if not isinstance(launcher, Slurm):
        _refuse_while_in_slurm(sweep)
        return run(sweep)
    from slurm.launch import launch

    return launch(sweep, launcher)


def run(sweep: Sweep) -> int:
    """Runs what is not finished, with a live table; the exit code: 1 when a run failed."""
    # It ends the loop below; the children get theirs from `stop` (on Ctrl-C the terminal sends it too).
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sweep.configs[0].launcher.must_be_local()
    sweep.configs[0].logger.must_be_there()
    lock = FileLock(sweep.folder / ".lock")
    try:
        sweep.folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{sweep.folder}: another sweep works in this folder; wait or choose another out=") from None
    except OSError as error:
        raise unwritable(sweep.folder.parent, error) from None
    sweep.write_plan()
    todo = sweep.to_do()
    prepare_data(todo)
    todo.sort(key=lambda c: -c.steps * c.batch_size * c.context * c.model.depth * c.model.width**2)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, sweep.configs[0].threads)))
    pool = Pool(sweep.folder, slots(sweep.configs[0]), todo)
    with Table(sweep, len(pool.free)) as table:
        try:
            while pool.waiting or pool.running:
                table.update(pool.step(), list(pool.running))
                time.sleep(0.2)
        except KeyboardInterrupt:
            pool.stop()
            table.update([], [])
            raise
        finally:
            lock.release()
    return table.say_end()


def prepare_data(configs: list[Config]) -> None:
    """Token files of all runs, before the first of them starts."""
    for config in {json.dumps(c.values()["data"]): c for c in configs}.values():
        from data.prepare import prepare

        prepare(config.data, Path(config.cache).expanduser(), progress=config.progress)


def _refuse_while_in_slurm(sweep: Sweep) -> None:
    if not (sweep.folder / "slurm").is_dir():
        return
    from slurm.runs import in_queue

    if waiting := in_queue(sweep.folder):
        raise ConfigError(
            f"{sweep.folder}: {len(waiting)} of its runs are in Slurm's queue, as python -m slurm.status says: "
            "wait, cancel them, or choose another out="
        )


def main() -> None:
    from train.cli.terminal import exit_with

    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments) or not arguments:
        from train.cli.help import show_help

        show_help()
        return
    exit_with(lambda: sys.exit(launch(plan(in_full(arguments)))))


if __name__ == "__main__":
    main()
