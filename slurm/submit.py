"""Groups the runs of a sweep into Slurm arrays, writes plans and batch scripts, and submits them.

A plan contains the full configs, so that later edits of config files do not affect queued runs. The code itself is not
copied; a task notes in its log if it runs another commit.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from conf.axis import ConfigError
from conf.paths import expanded
from slurm.commands import SECONDS, Missing, Refused, call, job_id, most_tasks
from slurm.records import Records
from slurm.runs import in_queue
from slurm.settle import Unclear, settle
from train.config.launcher import Slurm
from train.runfolder.files import if_stale, unwritable
from train.runfolder.provenance import commit

if TYPE_CHECKING:
    from train.config.schema import Config

CODE = Path(__file__).resolve().parents[1]

SAFETY = 3
"""Time limit over the estimated time, where the user sets no limit: nodes are slower, and shared."""
STARTING = 300
"""Seconds added to it for the imports from a shared disk."""


@dataclass(frozen=True)
class Array:
    """Tasks with the same resources; each is a list of runs."""

    launcher: Slurm
    tasks: list[list[Config]]
    folder: Path = field(default_factory=Path.cwd)
    """Where tasks start."""

    @property
    def config(self) -> Config:
        """Returns the config of one run. All share its devices, nodes, accelerator and threads."""
        return self.tasks[0][0]

    def gpus(self) -> int:
        """Returns the GPUs per node of a task."""
        if self.launcher.gpus is not None:
            return self.launcher.gpus
        return 0 if self.config.accelerator == "cpu" else self.config.devices or 1

    def options(self, records: Records) -> list[str]:
        """Returns the options for sbatch."""
        launcher, config, last = self.launcher, self.config, len(self.tasks) - 1
        limit = f"%{launcher.array_parallelism}" if launcher.array_parallelism else ""
        cpus = launcher.cpus or config.threads * max(1, at_once(launcher, self.gpus(), len(self.tasks[0])))
        log = str(records.path.resolve()).replace("%", "%%") + "/%A_%a.log"
        options = {
            "job-name": records.sweep.name,
            "array": f"0-{last}{limit}",
            "output": log,
            "partition": launcher.partition,
            "time": launcher.time if (minutes := self.minutes()) is None else minutes,
            "nodes": config.nodes,
            "ntasks-per-node": config.devices or 1,
            "cpus-per-task": cpus or None,
            "gpus-per-node": self.gpus() or None,
            "mem": launcher.memory,
            "signal": f"B:USR1@{launcher.signal_seconds}",
        }
        return [f"--{k}={v}" for k, v in options.items() if v is not None] + shlex.split(launcher.options)

    def minutes(self) -> int | None:
        """Returns a time limit that fits the estimate of the longest task.

        None if the launcher sets a limit, or if the runs train on GPUs, for which there is no estimate.
        """
        given = self.launcher.time is not None or "--time" in self.launcher.options
        return None if given or self.gpus() else self._minutes

    @cached_property
    def _minutes(self) -> int:
        from train.cli.estimate import Estimator  # loads torch

        estimator, longest = Estimator(), 0.0
        for task in self.tasks:
            seconds = [estimator.cost(config).seconds for config in task]
            longest = max(longest, *seconds, sum(seconds) / max(1, at_once(self.launcher, 0, len(task))))
        return math.ceil((STARTING + self.launcher.signal_seconds + SAFETY * longest) / 60)

    def script(self, records: Records, number: int) -> str:
        """Returns the text of the array's batch script."""
        runs = sum(map(len, self.tasks))
        values = {
            "what": f"{runs} runs of {records.sweep} in {len(self.tasks)} tasks. Show their state: "
            f"stabilab status {records.sweep}",
            "options": "\n".join(f"#SBATCH {_quoted(option)}" for option in self.options(records)),
            "setup": self.launcher.setup,
            "folder": shlex.quote(str(self.folder)),
            "code": shlex.quote(str(CODE)),
            "python": shlex.quote(sys.executable),
            "plan": shlex.quote(str(records.plan_path(number).resolve())),
            "script": shlex.quote(str(records.script_path(number).resolve())),
        }
        text = template(self.launcher).read_text(encoding="utf-8")
        for name, value in values.items():
            # str.format would also replace ${name}, which is shell syntax.
            text = text.replace("{" + name + "}", value)
        return text


def at_once(launcher: Slurm, gpus: int, runs: int) -> int:
    """Returns the number of runs of a task that train at the same time."""
    return min(runs, launcher.runs_at_once or gpus or runs)


def _quoted(option: str) -> str:
    name, _, value = option.partition("=")
    return f'{name}="{value}"' if any(c in value for c in " \"'#\\;") else option


def template(launcher: Slurm) -> Path:
    """Returns the path of the batch script's template. Raises ConfigError if there is no such file."""
    own = {"requeue": CODE / "slurm" / "requeue.sh", "resubmit": CODE / "slurm" / "resubmit.sh"}
    path = own.get(launcher.template) or expanded(launcher.template, "launcher.template")
    if not path.is_file():
        raise ConfigError(f"launcher.template={launcher.template}: no such file: use requeue, resubmit or a path")
    return path


def arrays(configs: Sequence[Config], launcher: Slurm, folder: Path | None = None) -> list[Array]:
    """Returns one array per set of resources that the runs need. Raises ConfigError for impossible combinations."""
    groups: dict[tuple[int, int, str, int], list[Config]] = {}
    for config in configs:
        groups.setdefault((config.nodes, config.devices or 1, config.accelerator, config.threads), []).append(config)
    found = []
    for (nodes, devices, accelerator, _), runs in groups.items():
        if launcher.runs_per_job > 1 and nodes * devices > 1:
            raise ConfigError(
                f"launcher.runs_per_job={launcher.runs_per_job}: a run on devices={devices} x nodes={nodes} needs a "
                "task of its own: use launcher.runs_per_job=1"
            )
        if launcher.gpus is not None and accelerator not in ("cpu", "auto") and launcher.gpus < devices:
            raise ConfigError(f"launcher.gpus={launcher.gpus} is less than devices={devices}: use at least {devices}")
        size = launcher.runs_per_job
        tasks = [runs[i : i + size] for i in range(0, len(runs), size)]
        found.append(Array(launcher, tasks, folder or Path.cwd()))
    return found


def submit(sweep: Path, configs: Sequence[Config], launcher: Slurm, folder: Path | None = None) -> list[str]:
    """Writes plans and scripts, submits them, and returns the jobs; with dry_run, only prints the scripts.

    Tasks start in `folder`, by default the current one.

    Raises ConfigError for what can't be submitted, and Refused, after removing the files again, if Slurm refuses. If
    Slurm does not say whether it has accepted an array, raises Unclear and keeps the plan.
    """
    records, found = Records(sweep), arrays(configs, launcher, folder)
    template(launcher)
    if limits := sorted({minutes for array in found if (minutes := array.minutes()) is not None}):
        print(
            f"time limit of a task: {' or '.join(map(str, limits))} minutes, {SAFETY} x the estimate and the start; "
            "launcher.time=... sets another",
            file=sys.stderr,
        )
    if launcher.dry_run:
        for number, array in enumerate(found, start=records.next_number()):
            print(array.script(records, number))
        print(f"dry run: {_counts(found)}, nothing was written or submitted", file=sys.stderr)
        return []
    most = most_tasks()
    for array in found:
        if most is not None and len(array.tasks) > most:
            runs = sum(map(len, array.tasks))
            raise ConfigError(
                f"{len(array.tasks)} tasks are more than the {most} that an array of this cluster can have: "
                f"use launcher.runs_per_job={math.ceil(runs / most)} or more"
            )
    new = [path for path in (records.path, *records.path.parents) if not path.exists()]
    try:
        records.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(sweep.parent, error) from None
    jobs: list[str] = []
    try:
        with FileLock(records.path / ".lock", timeout=len(found) * 2 * SECONDS):
            found = _not_in_queue(records, found)
            for array in found:
                jobs.append(_send(records, array))
    except Timeout:
        raise Refused(
            f"{sweep}: another command submits it: wait for its end{if_stale(records.path / '.lock')}"
        ) from None
    except Refused as fault:
        if jobs:
            raise Refused(f"{fault} (already submitted: job {', '.join(jobs)})") from None
        if new and not isinstance(fault, Unclear):
            (records.path / ".lock").unlink(missing_ok=True)
            for path in new:
                path.rmdir()
        raise
    if jobs:
        print(f"{_counts(found)} submitted as job {', '.join(jobs)}")
    return jobs


def _not_in_queue(records: Records, found: Sequence[Array]) -> list[Array]:
    """Returns the arrays without runs that another command has submitted since the queue was looked at."""
    waiting = set(in_queue(records.sweep)) if records.jobs() else set[str]()
    left, gone = [], 0
    for array in found:
        tasks = [[config for config in task if config.run_name() not in waiting] for task in array.tasks]
        gone += sum(map(len, array.tasks)) - sum(map(len, tasks))
        if any(tasks):
            left.append(replace(array, tasks=[task for task in tasks if task]))
    if gone:
        print(f"{gone} of these runs are in the queue by now: another command has submitted them")
    return left


def _send(records: Records, array: Array) -> str:
    """Writes plan and script of one array, submits it, and returns the job."""
    number = records.next_number()
    script = records.script_path(number)
    records.write_plan(number, array.tasks, array.folder)
    script.write_text(array.script(records, number), encoding="utf-8")
    commit()  # Kept for the note of the job, which must not have to wait for git.
    try:
        said = call("sbatch", "--parsable", str(script.resolve()))
        job = job_id(said)
        if job is None:
            raise Refused(f"sbatch printed no job id but {' '.join(said.split())[-200:]!r}")
    except Missing:
        records.drop(number)
        raise
    except BaseException as fault:  # Slurm may have the job all the same, also after Ctrl-C.
        job = settle(records, number)
        if job is None or not isinstance(fault, Refused):
            raise
        return job
    records.note_job(job, number)
    return job


def _counts(found: Sequence[Array]) -> str:
    tasks = [task for array in found for task in array.tasks]
    return f"{sum(map(len, tasks))} runs in {len(tasks)} tasks"
