"""Slurm's own commands, and what they say of jobs."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from conf.axis import ConfigError
from slurm.records import expand

SECONDS = 120.0
"""Longest wait for a command: a busy controller answers late."""
LIVE = (
    "PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING",
    "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT",
)  # fmt: skip
"""States of a job that runs or will run."""


@dataclass(frozen=True)
class TaskState:
    """Slurm's word for a task, RUNNING or TIMEOUT, and its reason for it."""

    word: str
    reason: str = ""
    preempted: bool = False

    @property
    def live(self) -> bool:
        return self.word in LIVE


class Refused(ConfigError):  # noqa: N818 - what Slurm did
    """Slurm refused a command."""


def call(*command: str) -> str:
    """What the command prints; Refused with its last line of complaint."""
    if shutil.which(command[0]) is None:
        raise Refused(f"{command[0]} isn't installed here: use a machine that can submit to the cluster")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise Refused(f"{command[0]} gave no answer in {SECONDS:.0f} seconds") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise Refused(f"{command[0]}: " + "; ".join(line.removeprefix(f"{command[0]}: error: ") for line in said[-2:]))
    return done.stdout


def states(tasks: Iterable[str]) -> dict[str, TaskState]:
    """Slurm's state of each task, 17_0, that it still knows of. Refused where there is no Slurm."""
    wanted = set(tasks)
    jobs = sorted({task.partition("_")[0] for task in wanted}, key=int)
    if not jobs:
        return {}
    queued = _queued(jobs)
    gone = sorted({task.partition("_")[0] for task in wanted - queued.keys()}, key=int)
    return (_ended(gone) if gone else {}) | queued


def state_of(task: str) -> TaskState | None:
    """What the controller has of one task."""
    return _shown(call("scontrol", "show", "job", "-o", task)).get(task)


def _queued(jobs: list[str]) -> dict[str, TaskState]:
    try:
        lines = call("squeue", "-h", "-r", "-j", ",".join(jobs), "-o", "%i|%T|%r").splitlines()
    except Refused as fault:
        if "Invalid job id" in str(fault):
            return {}
        raise
    return _table(line.split("|") for line in lines)


def _ended(jobs: list[str]) -> dict[str, TaskState]:
    """From the accounting database, else, for some minutes after a job's end, from the controller."""
    try:
        lines = call("sacct", "-n", "-X", "-P", "-j", ",".join(jobs), "-o", "JobID,TaskState,ExitCode").splitlines()
        accounted = _table(line.split("|") for line in lines)
    except Refused:
        accounted = {}
    # The database lags behind the controller: a task that isn't in the queue doesn't run.
    ended = {task: state for task, state in accounted.items() if not state.live}
    settled = {task.partition("_")[0] for task in ended} - {task.partition("_")[0] for task in accounted.keys() - ended}
    for job in set(jobs) - settled:
        try:
            ended = _shown(call("scontrol", "show", "job", "-o", job)) | ended
        except Refused:
            continue
    return ended


def _table(rows: Iterable[list[str]]) -> dict[str, TaskState]:
    found: dict[str, TaskState] = {}
    for job, word, reason in rows:
        number, _, tasks = job.partition("_")
        # `CANCELLED by 1000`
        state = TaskState(word.partition(" ")[0], "" if reason in ("None", "0:0") else reason)
        found |= {f"{number}_{task}": state for task in expand(tasks)}
    return found


def _shown(text: str) -> dict[str, TaskState]:
    found: dict[str, TaskState] = {}
    for line in text.splitlines():
        values = dict(re.findall(r"(\w+)=(\S*)", line))
        said = {key: "" if value == "None" else value for key, value in values.items()}
        state = TaskState(said.get("JobState", ""), said.get("Reason", ""), bool(said.get("PreemptTime")))
        job, tasks = values.get("ArrayJobId", ""), expand(values.get("ArrayTaskId", ""))
        found |= {f"{job}_{task}": state for task in tasks}
    return found


def most_tasks() -> int | None:
    """Tasks that an array of this cluster may have."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"))
    return int(found[1]) if found else None
