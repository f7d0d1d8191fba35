"""What became of each run of a sweep: its own status beside its task's state in Slurm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.axis import ConfigError, near
from slurm.commands import Refused, TaskState, states
from slurm.records import Planned, Records
from train.runfolder.files import read_json
from train.runfolder.folder import ENDED, RunFolder, require_format

BY_SLURM = {
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
    "NODE_FAIL": "node_fail",
    "BOOT_FAIL": "node_fail",
    "OUT_OF_MEMORY": "out_of_memory",
}
"""What a task's end means for a run that hasn't ended."""
STOPPED = {
    "interrupted by SIGUSR1": "timeout",
    "interrupted by SIGTERM": "preempted",
    "interrupted by Ctrl-C or SIGTERM": "preempted",
}
"""What a run's own reason means where Slurm knows nothing, or only that the script ended."""
OPEN = ("failed", "timeout", "preempted", "cancelled", "node_fail", "out_of_memory", "lost", "new")
"""Outcomes that leave something to do. lost: no trace in Slurm, new: never submitted."""


@dataclass(frozen=True)
class Run:
    folder: RunFolder
    task: str | None
    planned: Planned | None
    """None where it was never submitted."""
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
        """finished, diverged, running, queued, or one of OPEN."""
        if self.state in ENDED and self.summary:
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

    @property
    def seconds_left(self) -> float:
        """At its last speed; NaN when it isn't running."""
        rate, step = self.status.get("train/tokens_per_second"), self.status.get("step")
        if self.outcome != "running" or self.planned is None or not rate or step is None:
            return math.nan
        values = self.planned.values
        return (values["steps"] - step - 1) * values["batch_size"] * values["context"] / float(rate)


def runs(sweep: Path, without_slurm: Callable[[Refused], None] | None = None) -> list[Run]:
    """Every run of the sweep, in the order of its plan. ConfigError for a folder that is none; Refused without Slurm,
    unless `without_slurm` takes that instead."""
    listed = read_json(sweep / "sweep.json").get("runs")
    if not listed:
        raise ConfigError(f"{sweep} is no sweep folder: sweep.json is missing")
    require_format((RunFolder(sweep / run["folder"]) for run in listed), sweep)
    submitted = _submitted(sweep, without_slurm)
    found: dict[str, Run] = {}
    for path in (sweep / run["folder"] for run in listed):
        # What another sweep has ended may have been submitted here once.
        here = path.parent.resolve() == sweep.resolve()
        found[path.name] = submitted[path.name] if here and path.name in submitted else _run(path)
    return list(found.values())


def in_queue(sweep: Path) -> list[str]:
    """Names of the runs whose task runs or waits."""
    return [run.name for run in _submitted(sweep).values() if run.outcome in ("running", "queued")]


def _submitted(sweep: Path, without_slurm: Callable[[Refused], None] | None = None) -> dict[str, Run]:
    latest = Records(sweep).latest()
    try:
        known = states(task for task, _ in latest.values())
    except Refused as fault:
        if without_slurm is None:
            raise
        without_slurm(fault)
        known = {}
    return {name: _run(sweep / name, task, run, known.get(task)) for name, (task, run) in latest.items()}


def _run(path: Path, task: str | None = None, planned: Planned | None = None, slurm: TaskState | None = None) -> Run:
    folder = RunFolder(path)
    return Run(folder, task, planned, slurm, folder.status(), folder.summary())


def chosen(words: Sequence[str]) -> set[str]:
    """Outcomes by name; ConfigError for another word."""
    for word in words:
        if word not in OPEN:
            raise ConfigError(f"--only {word}: {near(word, list(OPEN))}")
    return set(words or OPEN)
