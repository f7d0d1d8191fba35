"""Decides where the runs of a sweep train, the `launcher` axis: in processes of this machine or in a Slurm array."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, Axis, ConfigError

Count = Annotated[int, Field(ge=1)]
TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}")


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LauncherConfig:
    name: str

    def require_local(self) -> None:
        """Raises ConfigError where the runs belong into a queue; for commands that train themselves."""
        if self.name != "local":
            raise ConfigError(
                f"launcher={self.name} is for sweeps: submit with python -m train.sweep launcher={self.name}, also a "
                "single run; python -m train.report judges it"
            )


LAUNCHER: Axis[LauncherConfig] = Axis("launcher")


@LAUNCHER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Local(LauncherConfig):
    """Processes on this machine, one a core or GPU; the command ends with the last run."""

    name: Literal["local"] = "local"


@LAUNCHER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Slurm(LauncherConfig):
    """Tasks of a Slurm array; the command submits them and ends. Null leaves a setting to the cluster."""

    name: Literal["slurm"] = "slurm"
    partition: str | None = None
    """Partition, or several with commas between them, in quotes."""
    time: str | int | None = None
    """Time limit of a task as sbatch takes it: minutes, HH:MM:SS or D-HH:MM:SS. What isn't done by then is requeued."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs of a task on each of its nodes; null is one a device of a run, and none with accelerator=cpu."""
    cpus: Count | None = None
    """CPU cores of a process; null is `threads` for each run that trains at the same time."""
    memory: str | None = None
    """Memory of a task on each of its nodes, 16G."""
    array_parallelism: Count | None = None
    """Most tasks that run at the same time; null is no limit."""
    runs_per_job: Count = 1
    """Runs that share a task, for runs that are too small for a GPU of their own."""
    runs_at_once: Count | None = None
    """Of the runs that share a task, those that train at the same time, spread over its GPUs; null is one a GPU, and
    without GPUs all."""
    signal_seconds: Annotated[int, Field(ge=1, le=65535)] = 120
    """Time before the limit at which a task writes checkpoints and goes back to the queue."""
    options: str = ""
    """Further options of sbatch, in quotes that Hydra sees too: "launcher.options='--account=lab --qos=long'"."""
    setup: str = ""
    """Shell line that each task runs first, in such quotes: "launcher.setup='module load cuda'"."""
    template: str = "requeue"
    """requeue, resubmit for clusters that forbid `scontrol requeue`, or the path of a script like slurm/requeue.sh."""
    dry_run: bool = False
    """Print the script; write and submit nothing."""

    @model_validator(mode="after")
    def _sbatch_can_read_it(self) -> Slurm:
        if self.time is not None and not TIME.fullmatch(str(self.time)):
            raise ValueError(f"time={self.time} is no time limit: minutes, HH:MM:SS or D-HH:MM:SS")
        try:
            given = shlex.split(self.options)
        except ValueError as error:
            raise ValueError(f"options={self.options!r}: {error}") from None
        if bad := [option for option in given if not option.startswith("--")]:
            raise ValueError(f"options has {bad[0]!r}, which is no option: write --account=lab --qos=long")
        for text in ("partition", "memory", "options", "setup"):
            if "\n" in str(getattr(self, text)):
                raise ValueError(f"{text} has a line break: keep it to one line")
        return self


def in_full(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides with launcher fields in full: `launcher=slurm partition=gpu` has launcher.partition=gpu."""
    chosen = next((o.partition("=")[2] for o in reversed(overrides) if o.startswith("launcher=")), "")
    fields = LAUNCHER.choices[chosen].__dataclass_fields__ if chosen in LAUNCHER.choices else {}
    return [f"launcher.{o}" if o.partition("=")[0] in fields.keys() - {"name"} else o for o in overrides]
