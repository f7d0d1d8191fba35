"""Reads and writes the records of submissions in `slurm/` of a sweep folder.

plan-1.jsonl   one line per run: its task in the array, name, hash of the config, and config
array-1.sh     batch script of that array
job-17.json    a job that Slurm accepted: plan, tasks, time, and commit of the code
17_0.log       output of task 0 of that job; the output of a run is in log.txt of its folder
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.axis import ConfigError
from train.runfolder.files import read_json, read_rows, write_atomically
from train.runfolder.provenance import commit

if TYPE_CHECKING:
    # Importing the config loads torch, which takes seconds and which slurm.status does not need.
    from train.config.schema import Config


@dataclass(frozen=True)
class Planned:
    """A run of an array, as recorded in a line of its plan."""

    task: int
    name: str
    hash: str
    values: dict[str, Any]
    folder: str | None = None
    """Where it was submitted: relative paths are meant from there. None in plans of earlier versions."""

    @cached_property
    def config(self) -> Config:
        """Returns the checked config. Raises ConfigError if the code now reads it differently than at submission.

        It is built on first use, because checking takes a millisecond and slurm.status shows thousands of runs.
        """
        from train.config.compose import of_values

        try:
            config = of_values(self.values)
        except ConfigError as error:
            raise ConfigError(f"{self.name} was submitted by code with other settings: {error}") from None
        if config.digest() != self.hash:
            raise ConfigError(
                f"{self.name} has another hash now, {config.digest()}, because settings were added to the code since "
                "it was submitted: submit the sweep again"
            )
        return config


class Records:
    """The submissions of one sweep."""

    def __init__(self, sweep: Path) -> None:
        self.sweep = sweep
        self.path = sweep / "slurm"

    def next_number(self) -> int:
        return 1 + max(map(_number, self.path.glob("plan-*.jsonl")), default=0)

    def plan_path(self, number: int) -> Path:
        return self.path / f"plan-{number}.jsonl"

    def script_path(self, number: int) -> Path:
        return self.path / f"array-{number}.sh"

    def write_plan(self, number: int, tasks: Sequence[Sequence[Config]], folder: Path | None = None) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        lines = [
            {
                "task": task,
                "name": config.run_name(),
                "hash": config.digest(),
                "config": config.values(),
                "folder": str(folder or Path.cwd()),
            }
            for task, configs in enumerate(tasks)
            for config in configs
        ]
        write_atomically(self.plan_path(number), "".join(json.dumps(line) + "\n" for line in lines))

    def job_path(self, job: str) -> Path:
        return self.path / f"job-{job}.json"

    def note_job(self, job: str, number: int, tasks: Iterable[int] | None = None) -> None:
        """Records a job that Slurm accepted for these tasks of a plan, by default all."""
        tasks = {run.task for run in read_plan(self.plan_path(number))} if tasks is None else tasks
        write_atomically(self.job_path(job), _note(job, number, tasks))

    def note_own_job(self, job: str, number: int, tasks: Iterable[int]) -> None:
        """Records the job of this process, if the command that submitted it could not. Tasks may start together."""
        with suppress(FileExistsError), self.job_path(job).open("x", encoding="utf-8") as file:
            file.write(_note(job, number, tasks))

    def jobs(self) -> list[dict[str, Any]]:
        """Returns the recorded jobs, oldest first: by plan, as clocks of nodes differ, and then by time."""
        paths = [path for path in self.path.glob("job-*.json") if path.stem.removeprefix("job-").isdecimal()]
        return sorted(filter(None, map(read_json, paths)), key=_age)

    def unnoted(self) -> list[int]:
        """Returns the numbers of the plans that no recorded job has."""
        noted = {int(job["plan"]) for job in self.jobs()}
        return sorted({_number(path) for path in self.path.glob("plan-*.jsonl")} - noted)

    def drop(self, number: int) -> None:
        """Deletes a plan that was not submitted, and its script."""
        self.plan_path(number).unlink(missing_ok=True)
        self.script_path(number).unlink(missing_ok=True)

    def latest(self) -> dict[str, tuple[str, Planned]]:
        """Returns the newest task, such as 17_0, and plan entry of every run that was ever submitted, by run name."""
        found: dict[str, tuple[str, Planned]] = {}
        plans: dict[int, list[Planned]] = {}
        for job in self.jobs():
            number = int(job["plan"])
            plans[number] = plans.get(number) or read_plan(self.plan_path(number))
            tasks = set(job["tasks"])
            found |= {run.name: (f"{job['job']}_{run.task}", run) for run in plans[number] if run.task in tasks}
        return found


def _note(job: str, number: int, tasks: Iterable[int]) -> str:
    return json.dumps({"job": job, "plan": number, "tasks": sorted(tasks), "time": time.time(), "commit": commit()})


def _age(job: dict[str, Any]) -> tuple[int, float]:
    return int(job["plan"]), float(job.get("time", 0))


def _number(plan: Path) -> int:
    return int(plan.stem.rpartition("-")[2])


def read_plan(path: Path) -> list[Planned]:
    return [
        Planned(int(row["task"]), row["name"], row["hash"], row["config"], row.get("folder")) for row in read_rows(path)
    ]


def expand(text: str) -> list[int]:
    """Returns the task numbers in Slurm's notation: 3, [3], [0-2,5%1] or 0-6:3."""
    numbers: list[int] = []
    for part in text.strip("[]").partition("%")[0].split(","):
        if found := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part):
            first, last, step = found.groups()
            numbers += range(int(first), int(last or first) + 1, int(step or 1))
    return numbers
