"""The `launcher` axis: the runs of a sweep train in processes on this machine or in Slurm arrays."""

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
        """Raises ConfigError unless the launcher is `local`. Called by commands that train in their own process."""
        if self.name != "local":
            raise ConfigError(
                f"launcher={self.name} needs a sweep, even for a single run: use stabilab sweep launcher={self.name}"
            )


LAUNCHER: Axis[LauncherConfig] = Axis("launcher")


@LAUNCHER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Local(LauncherConfig):
    """Processes on this machine; the command returns after the last run."""

    name: Literal["local"] = "local"
    runs_at_once: Count | None = None
    """Runs that train at the same time, spread over the GPUs. Null means one per GPU or, without GPUs, one for each
    `threads` cores. Use more on GPUs that small runs don't fill."""
    runs_per_process: Count = 1
    """Most runs that a process trains at once, their forward and backward passes as one batched computation, if they
    differ in seed and optimizer.lr alone. Meant for GPUs, where the launches of kernels take most of a small model's
    step; on a CPU it doesn't pay. Numbers equal those of single runs up to rounding."""


@LAUNCHER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Slurm(LauncherConfig):
    """Tasks of Slurm arrays; the command submits them and returns. Null leaves a setting to the cluster."""

    name: Literal["slurm"] = "slurm"
    partition: str | None = None
    """Partition, or a quoted list of partitions separated by commas."""
    time: str | int | None = None
    """Time limit of a task in sbatch's format: minutes, HH:MM:SS or D-HH:MM:SS. Unfinished runs are requeued. Null is
    three times the estimate of --dry-run for runs on CPU cores, and leaves those on GPUs to the cluster."""
    gpus: Annotated[int, Field(ge=0)] | None = None
    """GPUs per node of a task. Null requests one per device of a run, and none with accelerator=cpu."""
    cpus: Count | None = None
    """CPU cores of a process. Null requests `threads` for each run that trains at the same time."""
    memory: str | None = None
    """Memory per node of a task, such as 16G."""
    array_parallelism: Count | None = None
    """Most tasks of an array that run at the same time. Null sets no limit."""
    runs_per_job: Count = 1
    """Runs that share a task. Use more than 1 for runs too small to fill a GPU."""
    runs_at_once: Count | None = None
    """Runs of a task that train at the same time, spread over its GPUs. Null means one per GPU, or all without GPUs."""
    signal_seconds: Annotated[int, Field(ge=1, le=65535)] = 120
    """Seconds before the time limit at which a task writes checkpoints and is requeued."""
    options: str = ""
    """More sbatch options. Quote them for the shell and for Hydra: "launcher.options='--account=lab --qos=long'"."""
    setup: str = ""
    """Shell line that each task runs first, quoted the same way: "launcher.setup='module load cuda'"."""
    template: str = "requeue"
    """Batch script: requeue; resubmit, for clusters that forbid `scontrol requeue`; or a path, see slurm/requeue.sh."""
    dry_run: bool = False
    """Print the script without writing or submitting anything."""

    @model_validator(mode="after")
    def _sbatch_can_read_it(self) -> Slurm:
        if self.time is not None and not TIME.fullmatch(str(self.time)):
            raise ValueError(f"time={self.time} is not a time limit: use minutes, HH:MM:SS or D-HH:MM:SS")
        try:
            options = shlex.split(self.options)
        except ValueError as error:
            raise ValueError(f"options={self.options!r}: {error}") from None
        if bad := [option for option in options if not option.startswith("--")]:
            raise ValueError(f"options has {bad[0]!r}, which is not an option: write --account=lab --qos=long")
        for text in ("partition", "memory", "options", "setup"):
            if "\n" in str(getattr(self, text)):
                raise ValueError(f"{text} has a line break: keep it to one line")
        return self


def in_full(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides with the fields of the chosen launcher spelled out.

    With launcher=slurm, `partition=gpu` becomes `launcher.partition=gpu`.
    """
    chosen = next((o.partition("=")[2] for o in reversed(overrides) if o.startswith("launcher=")), "")
    fields = LAUNCHER.choices[chosen].__dataclass_fields__ if chosen in LAUNCHER.choices else {}
    return [f"launcher.{o}" if o.partition("=")[0] in fields.keys() - {"name"} else o for o in overrides]
