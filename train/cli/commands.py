"""The commands of `stabilab`. A new command is one line here: running it, help and completion read this table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple


class Command(NamedTuple):
    module: str
    """What `python -m` runs for it."""
    takes: Literal["overrides", "findings", "folder", "options"]
    """What completion offers after it: choices and fields, names of experiments, or paths (also with `options`)."""
    says: str
    """What it does, in one short line that begins with a verb."""


COMMANDS: Mapping[str, Command] = {
    "train": Command("train", "overrides", "trains one run; with -m, one per combination of values"),
    "sweep": Command("train.sweep", "overrides", "trains every point of a grid, here or on Slurm"),
    "diagnose": Command("train.diagnose", "overrides", "finds the LR at which a recipe breaks, and forecasts it"),
    "report": Command("train.report", "folder", "writes tables, figures and verdict of a sweep or run"),
    "runs": Command("train.runs", "folder", "lists, compares and deletes runs"),
    "findings": Command("train.findings", "findings", "lists published claims; with names, tests them"),
    "leaderboard": Command("train.leaderboard", "overrides", "ranks mixing rules, or recipes, over learning rates"),
    "coordinates": Command("train.coordinates", "overrides", "checks how activations move with width or depth"),
    "inspect": Command("train.inspect", "folder", "measures trained weights: Hessian, neurons, rounding, ..."),
    "generate": Command("train.generate", "folder", "continues a text with the weights of a run"),
    "dashboard": Command("train.dashboard", "folder", "creates the W&B workspace and report of a sweep"),
    "sync": Command("train.sync", "folder", "sends offline runs to W&B"),
    "status": Command("slurm.status", "folder", "shows the runs of a sweep submitted to Slurm"),
    "resubmit": Command("slurm.resubmit", "folder", "submits unfinished runs to Slurm again"),
    "migrate": Command("train.migrate", "folder", "converts runs of the earlier format"),
    "bench": Command("train.bench", "options", "measures the cost of the loop, the probes and bf16"),
    "docs": Command("train.docs", "options", "writes the generated documentation of a checkout"),
}
