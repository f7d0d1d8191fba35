"""From the runs of a sweep to Slurm arrays: chunks, script, submission.

The configs are frozen in the plan, so that what is edited later doesn't reach runs that wait. The code is not: tasks
say so in their log when it is at another commit.
"""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from conf.axis import ConfigError
from slurm.commands import Refused, call, most_tasks
from slurm.records import Records
from train.config.launcher import Slurm
from train.config.schema import Config
from train.runfolder.files import unwritable

CODE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Array:
    """Tasks that need the same machines; each has the runs that it trains."""

    launcher: Slurm
    tasks: list[list[Config]]

    @property
    def config(self) -> Config:
        """Of one of the runs: what they share are devices, nodes, accelerator and threads."""
        return self.tasks[0][0]

    def gpus(self) -> int:
        given, devices = self.launcher.gpus, self.config.devices or 1
        return given if given is not None else 0 if self.config.accelerator == "cpu" else devices

    def options(self, records: Records) -> list[str]:
        """The options of sbatch."""
        launcher, config, last = self.launcher, self.config, len(self.tasks) - 1
        limit = f"%{launcher.array_parallelism}" if launcher.array_parallelism else ""
        cpus = launcher.cpus or config.threads * max(1, at_once(launcher, self.gpus(), len(self.tasks[0])))
        log = str(records.path.resolve()).replace("%", "%%") + "/%A_%a.log"
        found = {
            "job-name": records.sweep.name,
            "array": f"0-{last}{limit}",
            "output": log,
            "partition": launcher.partition,
            "time": launcher.time,
            "nodes": config.nodes,
            "ntasks-per-node": config.devices or 1,
            "cpus-per-task": cpus or None,
            "gpus-per-node": self.gpus() or None,
            "mem": launcher.memory,
            "signal": f"B:USR1@{launcher.signal_seconds}",
        }
        return [f"--{k}={v}" for k, v in found.items() if v is not None] + shlex.split(launcher.options)

    def script(self, records: Records, number: int) -> str:
        """The text of the array's script."""
        runs = sum(map(len, self.tasks))
        values = {
            "what": f"{runs} runs of {records.sweep} in {len(self.tasks)} tasks. How they are: "
            f"python -m slurm.status {records.sweep}",
            "options": "\n".join(f"#SBATCH {_quoted(option)}" for option in self.options(records)),
            "setup": self.launcher.setup,
            "folder": shlex.quote(str(Path.cwd())),
            "code": shlex.quote(str(CODE)),
            "python": shlex.quote(sys.executable),
            "plan": shlex.quote(str(records.plan_path(number).resolve())),
            "script": shlex.quote(str(records.script_path(number).resolve())),
        }
        text = template(self.launcher).read_text()
        for name, value in values.items():
            # Not ${name}, which is the shell's.
            text = text.replace("{" + name + "}", value)
        return text


def at_once(launcher: Slurm, gpus: int, runs: int) -> int:
    """Runs of a task that train at the same time."""
    return min(runs, launcher.runs_at_once or gpus or runs)


def _quoted(option: str) -> str:
    name, _, value = option.partition("=")
    return f'{name}="{value}"' if any(c in value for c in " \"'#\\;") else option


def template(launcher: Slurm) -> Path:
    own = {"requeue": CODE / "slurm" / "requeue.sh", "resubmit": CODE / "slurm" / "resubmit.sh"}
    path = own.get(launcher.template, Path(launcher.template).expanduser())
    if not path.is_file():
        raise ConfigError(f"launcher.template={launcher.template}: no such file; requeue and resubmit come along")
    return path


def arrays(configs: Sequence[Config], launcher: Slurm) -> list[Array]:
    """One array for each kind of machines that runs need; ConfigError for what can't be."""
    kinds: dict[object, list[Config]] = {}
    for config in configs:
        kinds.setdefault((config.nodes, config.devices or 1, config.accelerator, config.threads), []).append(config)
    found = []
    for (nodes, devices, accelerator, _), runs in ((k, v) for k, v in kinds.items() if isinstance(k, tuple)):
        if launcher.runs_per_job > 1 and nodes * devices > 1:
            raise ConfigError(
                f"launcher.runs_per_job={launcher.runs_per_job}: a run on devices={devices} x nodes={nodes} takes a "
                "task of its own; use launcher.runs_per_job=1"
            )
        if launcher.gpus is not None and accelerator not in ("cpu", "auto") and launcher.gpus < devices:
            raise ConfigError(f"launcher.gpus={launcher.gpus} is less than devices={devices}: use at least {devices}")
        size = launcher.runs_per_job
        found.append(Array(launcher, [runs[i : i + size] for i in range(0, len(runs), size)]))
    return found


def submit(sweep: Path, configs: Sequence[Config], launcher: Slurm) -> list[str]:
    """Writes plans and scripts and submits them; the jobs. What Slurm refuses leaves nothing behind."""
    records, found = Records(sweep), arrays(configs, launcher)
    template(launcher)
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
                f"{len(array.tasks)} tasks are more than an array of this cluster may have, {most}: "
                f"use launcher.runs_per_job={math.ceil(runs / most)} or more"
            )
    new = [path for path in (records.path, *records.path.parents) if not path.exists()]
    try:
        records.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(sweep.parent, error) from None
    jobs: list[str] = []
    try:
        with FileLock(records.path / ".lock"):
            for array in found:
                jobs.append(_send(records, array))
    except Refused as fault:
        if jobs:
            raise Refused(f"{fault} (submitted before that: job {', '.join(jobs)})") from None
        if new:
            (records.path / ".lock").unlink(missing_ok=True)
        for path in new:
            path.rmdir()
        raise
    print(f"{_counts(found)} submitted as job {', '.join(jobs)}")
    return jobs


def _send(records: Records, array: Array) -> str:
    number = records.next_number()
    plan, script = records.plan_path(number), records.script_path(number)
    records.write_plan(number, array.tasks)
    script.write_text(array.script(records, number))
    try:
        # Of several clusters sbatch says which: 17;cluster.
        job = call("sbatch", "--parsable", str(script)).split(";")[0].strip()
    except BaseException:
        plan.unlink()
        script.unlink()
        raise
    records.note_job(job, number, range(len(array.tasks)))
    return job


def _counts(found: Sequence[Array]) -> str:
    tasks = [task for array in found for task in array.tasks]
    return f"{sum(map(len, tasks))} runs in {len(tasks)} tasks"
