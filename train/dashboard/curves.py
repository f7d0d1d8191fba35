"""What a sweep says and none of its runs: LR sensitivity, loss against LR, the verdict. In W&B it is a run of its own.

That run has the sweep's group and the job type `sweep`. Its curves are history over `sweep/N` and `sweep/lr`, so that
W&B's own line plots show them; its tables are `lr_sensitivity_table` and `runs_table`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.axis import ConfigError
from train.cli.format import size_label
from train.findings.base import find
from train.loggers.mirror import STEP
from train.loggers.wandb import CONNECT_SECONDS
from train.report import markdown
from train.results.arms import varying, with_arms
from train.results.sweep import SweepResults
from train.results.table import COLUMNS, cells, table
from train.results.verdict import Verdict, jsonable

if TYPE_CHECKING:
    import pandas as pd

JOB_TYPE = "sweep"
OVER_N, OVER_LR = "sweep/N", "sweep/lr"
EPS_LINE = "sweep/gradient_equals_eps"
"""1 at the first and the last step: where the RMS of a gradient is the optimizer's epsilon."""
RUNS = (
    "run",
    "state",
    "arm",
    "N",
    "optimizer.lr",
    "seed",
    "validation/loss",
    "validation/loss_init",
    "logit_max",
    "entropy_final",
)


@dataclass(frozen=True)
class Curve:
    """A line of the sweep's run: a metric, its arm and, where it belongs to one, its size."""

    name: str
    arm: str
    size: int | None
    points: Mapping[float, float]


@dataclass(frozen=True)
class SweepRun:
    """What the sweep's run holds."""

    name: str
    runs: pd.DataFrame
    """The sweep's runs with `arm`."""
    settings: Mapping[str, Mapping[str, Any]]
    """Of each arm, the config that tells it from others."""
    sensitivity: Sequence[Curve]
    losses: Sequence[Curve]
    steps: int
    text: str
    """Markdown: verdict, checks, table of LR sensitivity."""
    verdict: Verdict | None
    trouble: str | None
    """Why there is no verdict."""
    single: bool = False
    """Whether this is one run alone: it has no sweep to speak of, and W&B no run for one."""
    tables: Mapping[str, tuple[list[Any], list[list[Any]]]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """A hash of what it holds: the same results are the same run, other results another one."""
        held = [self.name, self.text, self.rows(), self.tables]
        return f"sweep-{hashlib.sha256(json.dumps(held, default=str).encode()).hexdigest()[:8]}"

    @property
    def arms(self) -> list[str]:
        return list(self.settings)

    def rows(self) -> list[dict[str, float]]:
        """Its history: a row for each N, for each LR, and the two ends of the line at epsilon."""
        found = []
        for x, curves in ((OVER_N, self.sensitivity), (OVER_LR, self.losses)):
            for place in sorted({p for curve in curves for p in curve.points}):
                found.append({x: place} | {c.name: c.points[place] for c in curves if place in c.points})
        return found + [{STEP: step, EPS_LINE: 1.0} for step in (0, self.steps - 1)]


def sweep_run(sweep: SweepResults, single: bool = False) -> SweepRun:
    runs = with_arms(sweep.runs)
    runs["arm"] = runs["arm"].replace("", "all runs")
    columns = varying(sweep.runs)
    settings = {str(arm): jsonable({c: group[c].iloc[0] for c in columns}) for arm, group in runs.groupby("arm")}
    found, (verdict, trouble) = table(sweep.runs), _judge(sweep)
    names = _size_names(sorted(runs["size"].unique()))
    points: dict[str, dict[float, float]] = {arm: {} for arm in settings}
    for row in found.to_dict("records"):
        if row.get("lr_sensitivity") == row.get("lr_sensitivity") and row.get("lr_sensitivity") is not None:
            points[str(row["arm"] or "all runs")][float(row["N"])] = float(row["lr_sensitivity"])
    sensitivity = [Curve(f"sweep/lr_sensitivity/{slug(arm)}", arm, None, at) for arm, at in points.items() if at]
    losses = []
    for (arm, size), group in runs[runs["ended"]].groupby(["arm", "size"]):
        median = group.groupby("optimizer.lr")["validation/loss"].median().dropna()
        at = {float(lr): float(loss) for lr, loss in median.items()}
        losses.append(Curve(f"sweep/loss/{slug(str(arm))}/{names[size]}", str(arm), int(size), at))
    listed = runs[list(dict.fromkeys([*RUNS, *columns]))]
    tables = {
        "lr_sensitivity_table": (list(COLUMNS.values()), cells(found)),
        "runs_table": (list(listed.columns), jsonable(listed.to_numpy().tolist())),
    }
    steps = int(runs["steps"].max())
    text = markdown(sweep, found, verdict)
    return SweepRun(sweep.name, runs, settings, sensitivity, losses, steps, text, verdict, trouble, single, tables)


def _judge(sweep: SweepResults) -> tuple[Verdict | None, str | None]:
    try:
        return (find(sweep.finding).verdict(sweep.runs, sweep.metrics) if sweep.finding else None), None
    except ConfigError as fault:
        return None, str(fault)


def slug(text: str) -> str:
    """The text as part of a metric's name: letters, digits, underscores and dots."""
    return re.sub(r"[^\w.]+", "_", text)


def _size_names(sizes: Sequence[float]) -> dict[float, str]:
    """Short names; whole numbers where short ones would be the same."""
    short = [size_label(n) for n in sizes]
    return {n: name if short.count(name) == 1 else str(int(n)) for n, name in zip(sizes, short, strict=True)}


def log(held: SweepRun, folder: Path, *, project: str, entity: str | None, offline: bool) -> None:
    """Sends the sweep's run to W&B, or leaves it in FOLDER/wandb for `wandb sync`; one that is there already stays."""
    import wandb

    settings = wandb.Settings(init_timeout=CONNECT_SECONDS, x_disable_stats=True, console="off", silent=True)
    run = wandb.init(
        project=project, entity=entity, id=held.id, name=f"{held.name} (sweep)", group=held.name, job_type=JOB_TYPE,
        dir=folder, mode="offline" if offline else "online", resume=None if offline else "allow", settings=settings,
    )  # fmt: skip
    if not run.resumed:
        for x, curves in ((OVER_N, held.sensitivity), (OVER_LR, held.losses)):
            run.define_metric(x, hidden=True)
            for curve in curves:
                run.define_metric(curve.name, step_metric=x)
        run.define_metric(EPS_LINE, step_metric=STEP)
        for row in held.rows():
            run.log(row)
        run.log({key: wandb.Table(columns=columns, data=rows) for key, (columns, rows) in held.tables.items()})
        run.summary.update({"verdict": held.verdict.state if held.verdict else "none", "text": held.text})
    run.finish()
