"""Trains the runs of an array task and handles Slurm's signals.

Slurm sends SIGUSR1 before the time limit, and SIGTERM when the job is preempted, requeued or cancelled. After either
signal the runs write checkpoints. Unless Slurm itself requeues or ends the task, the task then runs $STABILAB_AGAIN to
return to the queue. Lightning's own requeuing is off (train/run/distributed.py).
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
from slurm.commands import Refused, TaskState, call, job_id, state_of
from slurm.records import Planned, Records, read_plan
from slurm.submit import Array, at_once
from train.config.launcher import Slurm
from train.config.schema import Config
from train.runfolder.files import read_json
from train.runfolder.folder import RunFolder
from train.runfolder.provenance import commit
from train.sweeps.early_stop import stays_stopped

PATIENCE = 300.0
"""Seconds that a run waits for a process that still trains it, on a node that Slurm has declared dead."""
FRUITLESS = 3
"""Times in a row that a task can reach its time limit without a new checkpoint before it gives up."""
GRACE = 600.0
"""Longest wait for checkpoints after SIGTERM, in seconds. Slurm kills the task before that."""


def say(text: str) -> None:
    """Prints a line with the time to the task's log."""
    print(f"{time.strftime('%F %T')}  {text}", flush=True)


class Work(Protocol):
    """Interface of Pool and Steps, which train the runs of a task."""

    waiting: list[Config]
    running: dict[str, Any]

    def step(self) -> list[str]:
        """Starts waiting runs if there is room, and returns the names of those that have ended since the last call."""

    def stop(self, seconds: float, signum: int) -> None:
        """Sends every process the signal, on which it writes a checkpoint, and waits up to `seconds` for its end."""


@dataclass
class Steps:
    """Trains multi-device runs one after the other, each as a job step of srun with one process per device."""

    plan: Path
    waiting: list[Config]
    running: dict[str, Any] = field(default_factory=dict)

    def step(self) -> list[str]:
        ended = [name for name, process in self.running.items() if process.poll() is not None]
        for name in ended:
            code, folder = self.running.pop(name).returncode, self._folder(name)
            # If the step ended because a node died, the task is no longer RUNNING and the run has not failed.
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
        # Since Slurm 22.05, srun does not inherit --cpus-per-task from the job.
        cores = os.environ.get("SLURM_CPUS_PER_TASK")
        tasks += [f"--cpus-per-task={cores}"] if cores else []
        program = [sys.executable, "-m", "slurm.rank", str(self.plan), config.run_name()]
        return ["srun", "--kill-on-bad-exit=1", "--wait=300", *tasks, *program]

    def stop(self, seconds: float, signum: int) -> None:
        for process in self.running.values():
            # srun forwards SIGUSR1 to every process; SIGTERM would end the step.
            process.send_signal(signal.SIGUSR1)
        for process in self.running.values():
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass
class Task:
    """A running array task."""

    plan: Path
    runs: list[Planned]
    signals: list[int]

    def __post_init__(self) -> None:
        self.sweep = self.plan.parents[1]
        self.folders = [RunFolder(self.sweep / run.name) for run in self.runs]
        self.stamps = self._stamps()

    @property
    def plan_number(self) -> int:
        return int(self.plan.stem.rpartition("-")[2])

    @property
    def stopped(self) -> int | None:
        """Returns the first signal received, or None."""
        return self.signals[0] if self.signals else None

    def _stamps(self) -> list[int]:
        """Returns the modification time of each run's checkpoint in ns, -1 if the run has ended, 0 without one."""
        return [
            -1 if f.has_ended() else f.checkpoint.stat().st_mtime_ns if f.checkpoint.exists() else 0
            for f in self.folders
        ]

    def _is_done(self, folder: RunFolder) -> bool:
        """Returns whether a run has ended, or was stopped by what its config asks for."""
        (run,) = (run for run in self.runs if run.name == folder.path.name)
        return folder.has_ended() or stays_stopped(run.config, folder.status())

    def left(self) -> list[RunFolder]:
        """Returns the runs that have not ended and have not failed in this task, which would not be retried."""
        return [
            f for f in self.folders
            if not self._is_done(f) and not (f.state() == "failed" and f.status().get("slurm") == name())
        ]  # fmt: skip

    def train(self) -> int:
        """Trains the runs and returns the exit code: 0 if all have ended, 1 if one failed, 128 + signal if stopped.

        It is 0 too if the task was stopped and is back in the queue.
        """
        self._train_until_signal()
        for folder in self.folders:
            reason = folder.status().get("reason")
            say(f"{folder.path.name}: {folder.state()}" + (f" ({reason})" if reason else ""))
        left = self.left()
        if self.stopped is None or not left:
            return int(not all(map(self._is_done, self.folders)))
        return self.requeue(left)

    def _train_until_signal(self) -> None:
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

    def requeue(self, left: list[RunFolder]) -> int:
        """Returns the task to the queue, unless Slurm itself requeues or ends it. Returns the exit code."""
        assert self.stopped is not None
        code, command = 128 + self.stopped, os.environ.get("STABILAB_AGAIN")
        if command is None:
            say("the script does not set STABILAB_AGAIN: use stabilab resubmit to continue")
            return code
        state = _state()
        # Whether Slurm requeues a preempted task depends on PreemptMode. A second request does no harm.
        if state is None or not (state.word == "RUNNING" or state.preempted):
            say("Slurm itself ends or requeues this task")
            return code
        if self.stopped == signal.SIGUSR1 and self.gives_up(left):
            return 1
        try:
            self._record(call(*shlex.split(command)))
        except Refused as fault:
            say(f"{command}: {fault}: use stabilab resubmit to continue")
            return code
        say(f"back to the queue with {len(left)} runs left: {command}")
        return 0

    def gives_up(self, left: list[RunFolder]) -> bool:
        """Marks the runs as failed if the task has reached its time limit FRUITLESS times without a new checkpoint.

        Otherwise a time limit too short for any checkpoint would requeue the task forever. Returns whether it gave up.
        """
        idle = self._stamps() == self.stamps
        times = 1 + max(int(folder.status().get("fruitless", 0)) for folder in left) if idle else 0
        for folder in left:
            folder.set_status(folder.state(), fruitless=times)
        if times < FRUITLESS:
            return False
        reason = f"reached the time limit {times} times without a new checkpoint: use a longer launcher.time"
        for folder in left:
            folder.set_status("failed", reason=reason, slurm=name())
        say(reason)
        return True

    def _record(self, output: str) -> None:
        """Records the new job that sbatch has printed. scontrol prints nothing and keeps the job."""
        if job := job_id(output):
            Records(self.sweep).note_job(job, self.plan_number, [self.runs[0].task])


def name() -> str:
    """Returns the name of this task in Slurm, such as 17_0."""
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"


def tasks_of_job(own: int) -> range:
    """Returns the tasks of the array to which this task, number `own`, belongs."""
    first, last = (int(os.environ.get(f"SLURM_ARRAY_TASK_{end}", own)) for end in ("MIN", "MAX"))
    return range(first, last + 1, int(os.environ.get("SLURM_ARRAY_TASK_STEP", 1)))


def _state() -> TaskState | None:
    try:
        return state_of(name())
    except Refused as fault:
        say(str(fault))
        return None


def work_of(plan: Path, configs: list[Config]) -> Work:
    """Returns what trains the runs: Steps if they need several devices, otherwise a Pool."""
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
    return Pool(plan.parents[1], slots, configs, PATIENCE)


def work(path: str, number: int, signals: list[int]) -> int:
    """Trains the runs of a task and returns the exit code. Raises ConfigError if the plan does not have the task."""
    plan = Path(path)
    task = Task(plan, [run for run in read_plan(plan) if run.task == number], signals)
    if not task.runs:
        raise ConfigError(f"{plan} has no task {number}")
    records, job = Records(task.sweep), name().partition("_")[0]
    records.note_own_job(job, task.plan_number, tasks_of_job(number))
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    say(f"task {name()} on {os.environ.get('SLURMD_NODENAME')}, {restarts} restarts: {len(task.runs)} runs")
    submitted = read_json(records.job_path(job)).get("commit")
    if submitted != commit():
        say(f"the code is at commit {commit()}; the task was submitted from {submitted}")
    return task.train()
