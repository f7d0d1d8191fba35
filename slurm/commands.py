"""Calls Slurm's commands and parses the states of tasks from their output.

On many clusters these commands are wrappers that print more than Slurm does, such as a greeting. Only lines of the
expected form are read; all others are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from conf.axis import ConfigError
from slurm.records import expand

SECONDS = 120.0
"""Timeout of a command. A busy controller may take this long to answer."""
LIVE = (
    "PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING",
    "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT",
)  # fmt: skip
"""States of a job that is running or will run."""
FILTERS = ("SQUEUE_", "SACCT_")
"""Prefixes of environment variables with which users filter or format what these commands print."""
ROW = re.compile(r"\s*(\d+)(?:_(\d+|\[[^|]*\]))?\|([A-Z_]+)(?: by \d+)?\+?\|(.*)")
"""A row of job, state and reason. sacct appends the user id, as in `CANCELLED by 1000`."""


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


class Missing(Refused):
    """The command isn't installed on this machine."""


def call(*command: str) -> str:
    """Runs a command and returns its output. Raises Refused if it is missing, times out or fails."""
    if shutil.which(command[0]) is None:
        raise Missing(f"{command[0]} isn't installed here: use a machine that can submit to the cluster")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FILTERS)}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=SECONDS,
            env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Refused(f"{command[0]} gave no answer in {SECONDS:.0f} seconds: try again later") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        lines = [line.removeprefix(f"{command[0]}: error: ") for line in errors[-2:]]
        raise Refused(f"{command[0]}: {'; '.join(lines)}")
    return done.stdout


def job_id(output: str) -> str | None:
    """Returns the job in the output of sbatch: the last line that is an id, or None if there is none.

    With --parsable sbatch prints `17`, or `17;cluster` in a multi-cluster setup. Some wrappers drop that option.
    """
    found = re.findall(r"^\s*(?:Submitted batch job )?(\d+)(?:;\S+| on cluster \S+)?\s*$", output, re.MULTILINE)
    return found[-1] if found else None


def job_of_script(script: Path) -> str | None:
    """Returns the newest job of this user that runs the batch script, or None if Slurm has none.

    Slurm can accept a job although sbatch reports an error, for instance a timeout on a busy controller.
    """
    lines = call("squeue", "-h", "-t", "all", "-u", str(os.getuid()), "-o", "%F|%o").splitlines()
    rows = [line.strip().partition("|") for line in lines]
    jobs = [int(job) for job, _, command in rows if job.isdecimal() and command == str(script.resolve())]
    return str(max(jobs)) if jobs else None


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
    return _table(lines)


def _ended(jobs: list[str]) -> dict[str, TaskState]:
    """Returns the states of tasks that have left the queue.

    They come from the accounting database, or from the controller, which keeps a job for some minutes after its end.
    """
    try:
        lines = call("sacct", "-n", "-X", "-P", "-j", ",".join(jobs), "-o", "JobID,State,ExitCode").splitlines()
        accounted = _table(lines)
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


def _table(lines: Iterable[str]) -> dict[str, TaskState]:
    """Returns the states in rows of job id, state and reason, one entry per task."""
    found: dict[str, TaskState] = {}
    for row in filter(None, map(ROW.fullmatch, lines)):
        job, tasks, word, reason = row.groups()
        state = TaskState(word, "" if reason in ("None", "0:0") else reason)
        found |= {f"{job}_{task}": state for task in expand(tasks or "")}
    return found


def _shown(text: str) -> dict[str, TaskState]:
    """Returns the states in the output of `scontrol show job -o`, one entry per task."""
    found: dict[str, TaskState] = {}
    for line in text.splitlines():
        # The first of a name counts: a path or comment further on may contain another.
        pairs = reversed(re.findall(r"(\w+)=(\S*)", line))
        values = {key: "" if value == "None" else value for key, value in pairs}
        state = TaskState(values.get("JobState", ""), values.get("Reason", ""), bool(values.get("PreemptTime")))
        job, tasks = values.get("ArrayJobId", ""), expand(values.get("ArrayTaskId", ""))
        found |= {f"{job}_{task}": state for task in tasks}
    return found


def most_tasks() -> int | None:
    """Returns the largest number of tasks that an array of this cluster can have, or None if it is not shown."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config"))
    return int(found[1]) if found else None
