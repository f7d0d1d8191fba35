"""What a sweep's submissions leave in `slurm/` of its folder, and the states that Slurm has of them.

plan-1.jsonl   a line a run: its task in the array, name, hash of the config, and the config itself
array-1.sh     the script of that array
job-17.json    a job that Slurm has accepted: which plan, which tasks, when, from which commit of the code
17_0.log       what task 0 of it printed; what a run printed is in log.txt of its folder
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.axis import ConfigError, checked
from train.runfolder.files import read_json, read_rows, write_atomically
from train.runfolder.provenance import commit

if TYPE_CHECKING:
    # Configs bring all of torch along, which takes seconds to start; slurm.status does without.
    from train.config.schema import Config


@dataclass(frozen=True)
class Planned:
    """A run of an array, as a line of its plan has it."""

    task: int
    name: str
    hash: str
    values: dict[str, Any]

    @cached_property
    def config(self) -> Config:
        """ConfigError where it isn't what it was when it was submitted: the code has changed since then.

        It takes a millisecond, which those that only want to know how runs are leave out.
        """
        from train.config.schema import Config

        try:
            config = checked(Config, self.values)
        except ConfigError as error:
            raise ConfigError(f"{self.name} was submitted by code with other settings: {error}") from None
        if config.digest() != self.hash:
            raise ConfigError(
                f"{self.name} has another hash now, {config.digest()}: its config has got settings since it was "
                "submitted; submit the sweep again"
            )
        return config


class Records:
    def __init__(self, sweep: Path) -> None:
        self.sweep = sweep
        self.path = sweep / "slurm"

    def next_number(self) -> int:
        return 1 + max((int(p.stem.rpartition("-")[2]) for p in self.path.glob("plan-*.jsonl")), default=0)

    def plan_path(self, number: int) -> Path:
        return self.path / f"plan-{number}.jsonl"

    def script_path(self, number: int) -> Path:
        return self.path / f"array-{number}.sh"

    def write_plan(self, number: int, tasks: Sequence[Sequence[Config]]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        lines = [
            {"task": task, "name": config.run_name(), "hash": config.digest(), "config": config.values()}
            for task, configs in enumerate(tasks)
            for config in configs
        ]
        write_atomically(self.plan_path(number), "".join(json.dumps(line) + "\n" for line in lines))

    def note_job(self, job: str, number: int, tasks: Sequence[int]) -> None:
        values = {"job": job, "plan": number, "tasks": list(tasks), "time": time.time(), "commit": commit()}
        write_atomically(self.path / f"job-{job}.json", json.dumps(values))

    def latest(self) -> dict[str, tuple[str, Planned]]:
        """Of every run that was ever submitted: the task that has it, as in 17_0, and its line of the plan."""
        found: dict[str, tuple[str, Planned]] = {}
        plans: dict[int, list[Planned]] = {}
        for job in sorted(map(read_json, self.path.glob("job-*.json")), key=lambda j: float(j.get("time", 0))):
            if job:
                number = int(job["plan"])
                plans[number] = plans.get(number) or read_plan(self.plan_path(number))
                tasks = set(job["tasks"])
                found |= {run.name: (f"{job['job']}_{run.task}", run) for run in plans[number] if run.task in tasks}
        return found


def read_plan(path: Path) -> list[Planned]:
    return [Planned(int(row["task"]), row["name"], row["hash"], row["config"]) for row in read_rows(path)]


def expand(text: str) -> list[int]:
    """Task numbers as Slurm writes them: 3, [3], [0-2,5%1], 0-6:3."""
    numbers: list[int] = []
    for part in text.strip("[]").partition("%")[0].split(","):
        if found := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part):
            first, last, step = found.groups()
            numbers += range(int(first), int(last or first) + 1, int(step or 1))
    return numbers
