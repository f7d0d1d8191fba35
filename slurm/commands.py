"""Calls Slurm's commands and parses the states of tasks from their output."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from conf.axis import ConfigError
from slurm.records import expand

SECONDS = 120.0
"""Timeout of a command. A busy controller may take this long to answer."""
LIVE = (
    "PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING",
    "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT",
)  # fmt: skip
"""States of a job that is running or will run."""


@dataclass(frozen=True)
class TaskState:
    """State of a task in Slurm, such as RUNNING or TIMEOUT, and Slurm's reason for it."""

    word: str
    reason: str = ""
    preempted: bool = False

    @property
    def live(self) -> bool:
        return self.word in LIVE


class Refused(ConfigError):  # noqa: N818 - what Slurm did
    """Slurm refused a command."""


def call(*command: str) -> str:
    """Runs a command and returns its output. Raises Refused if it is missing, times out or fails."""
    if shutil.which(command[0]) is None:
        raise Refused(f"{command[0]} isn't installed here: use a machine that can submit to the cluster")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise Refused(f"{command[0]} gave no answer in {SECONDS:.0f} seconds: try again later") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        lines = [line.removeprefix(f"{command[0]}: error: ") for line in errors[-2:]]
        raise Refused(f"{command[0]}: {'; '.join(lines)}")
    return done.stdout


def states(tasks: Iterable[str]) -> dict[str, TaskState]:
    """Returns the state of each task, named like 17_0, that Slurm still knows. Raises Refused without Slurm."""
    wanted = set(tasks)
    jobs = sorted({task.partition("_")[0] for task in wanted}, key=int)
    if not jobs:
        return {}
    queued = _queued(jobs)
    gone = sorted({task.partition("_")[0] for task in wanted - queued.keys()}, key=int)
    return (_ended(gone) if gone else {}) | queued


def state_of(task: str) -> TaskState | None:
    """Returns the controller's state of one task, or None. Raises Refused if the controller does not know the job."""
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
    """Returns the states of tasks that have left the queue.

    They come from the accounting database, or from the controller, which keeps a job for some minutes after its end.
    """
    try:
        lines = call("sacct", "-n", "-X", "-P", "-j", ",".join(jobs), "-o", "JobID,State,ExitCode").splitlines()
        accounted = _table(line.split("|") for line in lines)
    except Refused:
        accounted = {}
    # The database lags behind the controller: these tasks are not in the queue, so a live state is out of date.
    ended = {task: state for task, state in accounted.items() if not state.live}
    settled = {task.partition("_")[0] for task in ended} - {task.partition("_")[0] for task in accounted.keys() - ended}
    for job in set(jobs) - settled:
        try:
            ended = _shown(call("scontrol", "show", "job", "-o", job)) | ended
        except Refused:
            continue
    return ended


def _table(rows: Iterable[list[str]]) -> dict[str, TaskState]:
    """Returns the states in rows of job id, state and reason, one entry per task."""
    found: dict[str, TaskState] = {}
    for job, word, reason in rows:
        number, _, tasks = job.partition("_")
        # sacct appends the user id, as in `CANCELLED by 1000`.
        state = TaskState(word.partition(" ")[0], "" if reason in ("None", "0:0") else reason)
        found |= {f"{number}_{task}": state for task in expand(tasks)}
    return found


def _shown(text: str) -> dict[str, TaskState]:
    """Returns the states in the output of `scontrol show job -o`, one entry per task."""
    found: dict[str, TaskState] = {}
    for line in text.splitlines():
        values = {key: "" if value == "None" else value for key, value in re.findall(r"(\w+)=(\S*)", line)}
        state = TaskState(values.get("JobState", ""), values.get("Reason", ""), bool(values.get("PreemptTime")))
        job, tasks = values.get("ArrayJobId", ""), expand(values.get("ArrayTaskId", ""))
        found |= {f"{job}_{task}": state for task in tasks}
    return found


def most_tasks() -> int | None:
    """Returns the largest number of tasks that an array of this cluster can have, or None if it is not shown."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"))
    return int(found[1]) if found else None
