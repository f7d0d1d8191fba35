"""Determines the outcome of each run of a sweep from its status.json and its task's state in Slurm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.axis import ConfigError, near
from slurm.commands import Refused, TaskState, states
from slurm.records import Planned, Records
from slurm.settle import settle_all
from train.runfolder.files import read_json
from train.runfolder.folder import ENDED, RunFolder, no_sweep, require_format
from train.runfolder.folder import STOPPED as STOPPED_EARLY

BY_SLURM = {
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "node_fail",
    "BOOT_FAIL": "node_fail",
    "OUT_OF_MEMORY": "out_of_memory",
}
"""Outcome of an unfinished run by the final state of its task."""
STOPPED = {
    "interrupted by SIGUSR1": "timeout",
    "interrupted by SIGTERM": "preempted",
    "interrupted by Ctrl-C or SIGTERM": "preempted",
}
"""Outcome of an unfinished run by the reason in its status.json, if Slurm's state does not tell."""
OPEN = ("failed", "timeout", "preempted", "cancelled", "node_fail", "out_of_memory", "lost", "new")
"""Outcomes of unfinished runs that can be submitted again. lost: unknown to Slurm; new: never submitted."""


@dataclass(frozen=True)
class Run:
    folder: RunFolder
    task: str | None
    planned: Planned | None
    """None if it was never submitted."""
    slurm: TaskState | None
    status: dict[str, Any]
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.path.name

    @property
    def state(self) -> str:
        return str(self.status.get("state", "pending"))

    @property
    def outcome(self) -> str:
        """Returns the run's outcome: finished, diverged, stopped, running, queued, or one of OPEN."""
        if self.state in ENDED and self.summary:
            return self.state
        if self.state == STOPPED_EARLY and self._stays_stopped():
            return self.state
        failed_here = self.state == "failed" and self.status.get("slurm") == self.task
        if self.slurm is not None and self.slurm.live and not failed_here:
            return "running" if self.slurm.word != "PENDING" and self.state == "running" else "queued"
        if self.slurm is not None and self.slurm.word == "OUT_OF_MEMORY":
            return "out_of_memory"
        if self.state == "failed":
            return "failed"
        if self.slurm is not None and self.slurm.word in BY_SLURM:
            return BY_SLURM[self.slurm.word]
        if (reason := str(self.status.get("reason"))) in STOPPED:
            return STOPPED[reason]
        if self.slurm is not None and self.slurm.word == "FAILED":
            return "failed"
        return "lost" if self.task else "new"

    def _stays_stopped(self) -> bool:
        from train.sweeps.early_stop import stays_stopped

        return self.planned is None or stays_stopped(self.planned.config, self.status)

    @property
    def seconds_left(self) -> float:
        """Returns the remaining training time at the last recorded speed; NaN if the run is not running."""
        rate, step = self.status.get("train/tokens_per_second"), self.status.get("step")
        if self.outcome != "running" or self.planned is None or not rate or step is None:
            return math.nan
        values = self.planned.values
        return (values["steps"] - step - 1) * values["batch_size"] * values["context"] / float(rate)


def runs(sweep: Path, without_slurm: Callable[[Refused], None] | None = None) -> list[Run]:
    """Returns every run of the sweep, in the order of sweep.json.

    Raises ConfigError if the folder is not a sweep folder. Without Slurm, calls `without_slurm` with the error and goes
    by status.json alone, or raises Refused if it is None.
    """
    listed = read_json(sweep / "sweep.json").get("runs")
    if not listed:
        raise no_sweep(sweep)
    require_format((RunFolder(sweep / run["folder"]) for run in listed), sweep)
    submitted = _submitted(sweep, without_slurm)
    found: dict[str, Run] = {}
    for path in (sweep / run["folder"] for run in listed):
        # A run that has ended in another sweep may have been submitted from this one before.
        here = path.parent.resolve() == sweep.resolve()
        found[path.name] = submitted[path.name] if here and path.name in submitted else _run(path)
    return list(found.values())


def in_queue(sweep: Path) -> list[str]:
    """Returns the names of the runs whose task is running or waiting."""
    return [run.name for run in _submitted(sweep).values() if run.outcome in ("running", "queued")]


def _submitted(sweep: Path, without_slurm: Callable[[Refused], None] | None = None) -> dict[str, Run]:
    records, known = Records(sweep), dict[str, TaskState]()
    latest: dict[str, tuple[str, Planned]] = {}
    try:
        settle_all(records)
        latest = records.latest()
        known = states(task for task, _ in latest.values())
    except Refused as fault:
        if without_slurm is None:
            raise
        without_slurm(fault)
        latest = latest or records.latest()
    return {name: _run(sweep / name, task, run, known.get(task)) for name, (task, run) in latest.items()}


def _run(path: Path, task: str | None = None, planned: Planned | None = None, slurm: TaskState | None = None) -> Run:
    folder = RunFolder(path)
    return Run(folder, task, planned, slurm, folder.status(), folder.summary())


def chosen(words: Sequence[str]) -> set[str]:
    """Returns the outcomes in `words`, or all of OPEN if it is empty. Raises ConfigError for an unknown word."""
    for word in words:
        if word not in OPEN:
            raise ConfigError(f"--only {word}: {near(word, list(OPEN))}")
    return set(words or OPEN)
