"""Logs the results that belong to a sweep and not to a run: LR sensitivity, loss against LR and the verdict.

They become an additional W&B run with the sweep's group and the job type `sweep`. Its curves are history over `sweep/N`
and `sweep/lr`, so that W&B's line plots can show them. Its tables are `lr_sensitivity_table` and `runs_table`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.cli.format import size_label
from train.loggers.mirror import STEP
from train.loggers.wandb import CONNECT_SECONDS
from train.report import judged, markdown
from train.results.arms import varying, with_arms
from train.results.sweep import SweepResults
from train.results.table import cells, table, titles
from train.results.verdict import Verdict, jsonable

if TYPE_CHECKING:
    import pandas as pd

JOB_TYPE = "sweep"
OVER_N, OVER_LR = "sweep/N", "sweep/lr"
EPS_LINE = "sweep/gradient_equals_eps"
"""A metric with value 1 at the first and last step: the line at which a gradient's RMS equals epsilon."""
RUNS = (
    "run", "state", "arm", "N", "optimizer.lr", "seed", "validation/loss", "validation/loss_init", "logit_max",
    "entropy_final",
)  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """Holds a curve of the sweep's run: its metric name, its arm and, if it belongs to one, its size."""

    name: str
    arm: str
    size: int | None
    points: Mapping[float, float]


@dataclass(frozen=True)
class SweepRun:
    """Holds the contents of the sweep's run."""

    name: str
    runs: pd.DataFrame
    """The runs of the sweep, with a column `arm`."""
    settings: Mapping[str, Mapping[str, Any]]
    """The config values that distinguish each arm."""
    sensitivity: Sequence[Curve]
    losses: Sequence[Curve]
    steps: int
    text: str
    """Verdict, checks and table of LR sensitivity in Markdown."""
    verdict: Verdict | None
    trouble: str | None
    """Why there is no verdict."""
    single: bool = False
    """Whether this is a single run. Then nothing is logged to W&B for a sweep."""
    tables: Mapping[str, tuple[list[Any], list[list[Any]]]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Returns a hash of the contents, so that new results become a new run and unchanged ones don't."""
        held = [self.name, self.text, self.rows(), self.tables]
        return f"sweep-{hashlib.sha256(json.dumps(held, default=str).encode()).hexdigest()[:8]}"

    @property
    def arms(self) -> list[str]:
        return list(self.settings)

    def rows(self) -> list[dict[str, float]]:
        """Returns the history: a row for each N, a row for each LR, and the two ends of the line at epsilon."""
        found = []
        for x, curves in ((OVER_N, self.sensitivity), (OVER_LR, self.losses)):
            for place in sorted({p for curve in curves for p in curve.points}):
                found.append({x: place} | {c.name: c.points[place] for c in curves if place in c.points})
        return found + [{STEP: step, EPS_LINE: 1.0} for step in (0, self.steps - 1)]


def sweep_run(sweep: SweepResults, single: bool = False) -> SweepRun:
    """Collects the contents of the sweep's run from its results."""
    runs = with_arms(sweep.runs)
    runs = runs[runs["size"].notna()].copy()  # Others never started, and their config isn't known.
    runs["arm"] = runs["arm"].replace("", "all runs")
    columns = varying(sweep.runs)
    settings = {str(arm): jsonable({c: group[c].iloc[0] for c in columns}) for arm, group in runs.groupby("arm")}
    found, (sweep, given) = table(sweep.runs), judged(sweep)
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
        "lr_sensitivity_table": (list(titles(found).values()), cells(found)),
        "runs_table": (list(listed.columns), jsonable(listed.to_numpy().tolist())),
    }
    steps = int(runs["steps"].max())
    text = markdown(sweep, found, given.verdict)
    return SweepRun(
        sweep.name, runs, settings, sensitivity, losses, steps, text, given.verdict, given.trouble, single, tables
    )


def slug(text: str) -> str:
    """Replaces all but letters, digits, underscores and dots, so that the text fits into a metric's name."""
    return re.sub(r"[^\w.]+", "_", text)


def _size_names(sizes: Sequence[float]) -> dict[float, str]:
    """Returns short names of sizes, or the whole number where short names would clash."""
    short = [size_label(n) for n in sizes]
    return {n: name if short.count(name) == 1 else str(int(n)) for n, name in zip(sizes, short, strict=True)}


def log(held: SweepRun, folder: Path, *, project: str, entity: str | None, offline: bool) -> Path:
    """Sends the sweep's run to W&B, unless W&B already has it, or writes it to FOLDER/wandb if `offline`.

    Returns the folder of the run. W&B writes elsewhere where it can't write in FOLDER.
    """
    if offline and (known := sorted(folder.glob(f"wandb/offline-run-*-{held.id}"))):
        return known[-1]
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
    written = Path(run.dir).parent
    run.finish()
    return written
