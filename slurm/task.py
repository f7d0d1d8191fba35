"""A task of an array at work: it trains the task's runs and answers Slurm's signals.

SIGUSR1 comes before the time limit, SIGTERM when the job is preempted, requeued or cancelled. Either leaves
checkpoints; then, where Slurm hasn't decided itself what becomes of the task, it goes back to the queue by
$STABILAB_AGAIN. Nothing else requeues: Lightning's own is off (train/run/distributed.py).
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from conf.axis import ConfigError
from slurm.commands import Refused, TaskState, call, state_of
from slurm.records import Planned, Records, read_plan
from slurm.submit import Array, at_once
from train.config.launcher import Slurm
from train.config.schema import Config
from train.runfolder.files import read_json
from train.runfolder.folder import ENDED, RunFolder
from train.runfolder.provenance import commit

PATIENCE = 300.0
"""Seconds that a run waits for a process that still trains it, on a node that Slurm has given up."""
FRUITLESS = 3
"""Times in a row that a task may come to its time limit without a new checkpoint."""
GRACE = 600.0
"""Longest wait for checkpoints after SIGTERM; Slurm's own patience is shorter and ends it."""


def say(text: str) -> None:
    print(f"{time.strftime('%F %T')}  {text}", flush=True)


class Work(Protocol):
    """What trains the runs of a task."""

    waiting: list[Config]
    running: dict[str, Any]

    def step(self) -> list[str]:
        """Starts what fits; the names of the runs that ended since the last call."""

    def stop(self, seconds: float, signum: int) -> None:
        """Asks every process for a checkpoint by that signal, and waits for it."""


@dataclass
class Steps:
    """Runs on several devices, one after the other: each is a step of srun with a process a device."""

    plan: Path
    waiting: list[Config]
    running: dict[str, Any] = field(default_factory=dict)

    def step(self) -> list[str]:
        ended = [name for name, process in self.running.items() if process.poll() is not None]
        for name in ended:
            code, folder = self.running.pop(name).returncode, self._folder(name)
            # A step that ends because a node died isn't a failure of the run.
            state = _state() if code and folder.state() == "running" else None
            if state is not None and state.word == "RUNNING":
                folder.set_status("failed", reason=f"srun ended with code {code}, see {folder.path / 'log.txt'}")
        if self.waiting and not self.running:
            config = self.waiting.pop(0)
            self.running[config.run_name()] = subprocess.Popen(self.command(config))
        return ended

    def _folder(self, name: str) -> RunFolder:
        return RunFolder(self.plan.parents[1] / name)

    def command(self, config: Config) -> list[str]:
        devices = config.devices or 1
        tasks = [f"--nodes={config.nodes}", f"--ntasks={devices * config.nodes}", f"--ntasks-per-node={devices}"]
        # Newer Slurms don't take the number of cores over from the job.
        cores = os.environ.get("SLURM_CPUS_PER_TASK")
        tasks += [f"--cpus-per-task={cores}"] if cores else []
        program = [sys.executable, "-m", "slurm.rank", str(self.plan), config.run_name()]
        return ["srun", "--kill-on-bad-exit=1", "--wait=300", *tasks, *program]

    def stop(self, seconds: float, signum: int) -> None:
        for process in self.running.values():
            # srun hands SIGUSR1 on to every task; SIGTERM would end the step.
            process.send_signal(signal.SIGUSR1)
        for process in self.running.values():
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass
class Task:
    """A task of an array at work."""

    plan: Path
    runs: list[Planned]
    signals: list[int]

    def __post_init__(self) -> None:
        self.sweep = self.plan.parents[1]
        self.folders = [RunFolder(self.sweep / run.name) for run in self.runs]
        self.stamps = self._stamps()

    @property
    def stopped(self) -> int | None:
        """The first signal that has come."""
        return self.signals[0] if self.signals else None

    def _stamps(self) -> list[int]:
        """When each run's checkpoint was written, and whether it ended."""
        return [
            -1 if f.has_ended() else f.checkpoint.stat().st_mtime_ns if f.checkpoint.exists() else 0
            for f in self.folders
        ]

    def left(self) -> list[RunFolder]:
        """Runs that have neither ended nor failed in this task: those aren't tried again by themselves."""
        return [
            f for f in self.folders
            if not f.has_ended() and not (f.state() == "failed" and f.status().get("slurm") == name())
        ]  # fmt: skip

    def train(self) -> int:
        """The exit code: 0 when all runs have ended, 1 when one failed, 128 and more after a signal."""
        self.work_off()
        for folder in self.folders:
            say(f"{folder.path.name}: {folder.state()}{_because(folder)}")
        left = self.left()
        if self.stopped is None or not left:
            return int(bool(left) or any(f.state() not in ENDED for f in self.folders))
        return self.again(left)

    def work_off(self) -> None:
        todo = {f.path.name for f in self.left()}
        work = work_of(self.plan, [run.config for run in self.runs if run.name in todo])
        while (work.waiting or work.running) and not self.signals:
            for ended in work.step():
                say(f"{ended} has ended")
            time.sleep(0.2)
        if self.signals:
            signum, launcher = self.signals[0], self.runs[0].config.launcher
            say(f"{signal.Signals(signum).name}: writing checkpoints")
            assert isinstance(launcher, Slurm)
            work.stop(launcher.signal_seconds if signum == signal.SIGUSR1 else GRACE, signum)

    def again(self, left: list[RunFolder]) -> int:
        """Back to the queue, unless Slurm does that itself or ends the task for good."""
        assert self.stopped is not None
        code, command = 128 + self.stopped, os.environ.get("STABILAB_AGAIN")
        if command is None:
            say("the script has no STABILAB_AGAIN: python -m slurm.resubmit goes on")
            return code
        state = _state()
        # What Slurm has preempted it requeues itself in one preemption mode and not in the other; asked twice it does
        # it once.
        if state is None or not (state.word == "RUNNING" or state.preempted):
            say("Slurm ends or requeues this task itself")
            return code
        if self.stopped == signal.SIGUSR1 and self.gives_up(left):
            return 1
        try:
            self._record(call(*shlex.split(command)))
        except Refused as fault:
            say(f"{command}: {fault}; python -m slurm.resubmit goes on")
            return code
        say(f"back to the queue with {len(left)} runs left: {command}")
        return 0

    def gives_up(self, left: list[RunFolder]) -> bool:
        """A time limit that leaves no time to train would requeue the task for ever."""
        idle = self._stamps() == self.stamps
        times = 1 + max(int(folder.status().get("fruitless", 0)) for folder in left) if idle else 0
        for folder in left:
            folder.set_status(folder.state(), fruitless=times)
        if times < FRUITLESS:
            return False
        reason = f"{times} times at the time limit without a new checkpoint: choose a longer launcher.time"
        for folder in left:
            folder.set_status("failed", reason=reason, slurm=name())
        say(reason)
        return True

    def _record(self, said: str) -> None:
        """sbatch says the number of the new job; scontrol says nothing and the job stays."""
        if job := said.split(";")[0].strip():
            number = int(self.plan.stem.rpartition("-")[2])
            Records(self.sweep).note_job(job, number, [self.runs[0].task])


def name() -> str:
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def _state() -> TaskState | None:
    try:
        return state_of(name())
    except Refused as fault:
        say(str(fault))
        return None


def _because(folder: RunFolder) -> str:
    reason = folder.status().get("reason")
    return f" ({reason})" if reason else ""


def work_of(plan: Path, configs: list[Config]) -> Work:
    from train.sweeps.pool import Pool, visible_gpus

    if not configs:
        return Steps(plan, [])
    config, launcher = configs[0], configs[0].launcher
    assert isinstance(launcher, Slurm)
    if (config.devices or 1) * config.nodes > 1:
        return Steps(plan, configs)
    gpus = Array(launcher, [configs]).gpus()
    places: list[str | None] = [*visible_gpus(gpus)] if gpus else [None]
    slots = [places[i % len(places)] for i in range(at_once(launcher, gpus, len(configs)))]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, config.threads)))
    return Pool(plan.parents[1], slots, configs, PATIENCE)


def work(path: str, number: int, signals: list[int]) -> int:
    """Trains the runs of a task; the exit code."""
    plan = Path(path)
    task = Task(plan, [run for run in read_plan(plan) if run.task == number], signals)
    if not task.runs:
        raise ConfigError(f"{plan} has no task {number}")
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    say(f"task {name()} on {os.environ.get('SLURMD_NODENAME')}, {restarts} restarts: {len(task.runs)} runs")
    submitted = [job.get("commit") for job in map(read_json, plan.parent.glob(f"job-{name().partition('_')[0]}.json"))]
    if submitted and submitted[0] != commit():
        say(f"the code is at {commit()}; it was at {submitted[0]} when this was submitted")
    return task.train()
