"""Builds the workspace and the report of a sweep with wandb-workspaces: runs grouped by arm, coloured by size.

Runs are selected by their W&B ids and not by group, because another sweep may share them. The sweep's own run is added.
Filters use `in`, like those that W&B's pages write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from train.cli.format import size_label
from train.dashboard.curves import SweepRun
from train.dashboard.panels import MAX_RUNS, Panels, shades
from train.loggers.mirror import STEP
from train.results.sweep import SHAPE
from train.results.verdict import jsonable

COLUMNS = (
    "run:displayName", "run:state", "config:model.value.name", "config:optimizer.value.lr", "config:seed.value",
    "summary:N", "summary:validation/loss", "summary:state", "summary:logit_max", "summary:entropy_final",
)  # fmt: skip
LR = "optimizer.lr"


def workspace(held: SweepRun, sections: Mapping[str, Panels], *, entity: str, project: str) -> ws.Workspace:
    """Returns a workspace that groups runs by arm, size and LR, so that each line is a mean over seeds."""
    group: list[Any] = [*(expr.Config(c) for c in [*_arm_columns(held), *_size_columns(held), LR])]
    opened = ("LR sensitivity", "Attention")
    return ws.Workspace(
        entity=entity,
        project=project,
        name=view_name(held.name),
        sections=[ws.Section(name=n, panels=p, is_open=n in opened) for n, p in sections.items()],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=min(MAX_RUNS, len(held.runs) + 1)),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(
                expr.Metric("ID").isin([*map(run_id, held.runs["run"]), *([] if held.single else [held.id])]),
            ),
            groupby=group,
            order=[ws.Ordering(_stored(LR), ascending=True)],
            run_settings={run: ws.RunSettings(color=colour) for run, colour in run_colours(held).items()},
            group_colors=_group_colours(held),
            pinned_columns=list(COLUMNS),
        ),
    )


def view_name(text: str) -> str:
    """Returns the text without the signs that wandb-workspaces refuses in a workspace's name, such as + and =."""
    return re.sub(r"[^\w.,() -]", "_", text)


def report(held: SweepRun, sections: Mapping[str, Panels], *, entity: str, project: str) -> wr.Report:
    """Returns a report: claim, source, verdict and table as text, then the panels of each section."""
    finding = held.verdict
    blocks: list[Any] = []
    if finding:
        blocks += [wr.H1("Claim"), wr.P(finding.claim), wr.P(f"Source: {finding.source}")]
    if not held.single:
        blocks += [wr.H1("Verdict" if finding else "LR sensitivity"), wr.MarkdownBlock(held.text)]
    if held.trouble:
        blocks += [wr.P(f"No verdict: {held.trouble}")]
    sizes = ", ".join(f"N = {size_label(n)} {colour}" for n, colour in shades(_sizes(held)).items())
    blocks += [wr.P(f"Each arm is a run set and each size has a colour: {sizes}. The x axis is the optimizer step.")]
    for name, panels in sections.items():
        shown = [panel for panel in panels if not isinstance(panel, wr.MarkdownPanel)]
        blocks += [wr.H1(name), wr.PanelGrid(runsets=runsets(held), panels=shown)]
    return wr.Report(
        project=project,
        entity=entity,
        title=held.name[:128],
        description=finding.claim if finding else f"{'Run' if held.single else 'Sweep'} {held.name}",
        blocks=blocks,
        width="fluid",
    )


def runsets(held: SweepRun) -> list[wr.Runset]:
    """Returns a run set per arm and one with the sweep's run. Without entity or project they use the report's."""
    colour = run_colours(held)
    found = []
    for arm in held.settings:
        ids = [run_id(run) for run in held.runs["run"][held.runs["arm"] == arm]]
        filters = [expr.Metric("ID").isin(ids)]
        painted = {run: wr.RunSettings(color=colour[run]) for run in ids}
        found.append(wr.Runset(name=arm, filters=filters, run_settings=painted, pinned_columns=list(COLUMNS)))
    own = wr.Runset(name="sweep", filters=[expr.Metric("ID").isin([held.id])])
    return found if held.single else [*found, own]


def _stored(column: str) -> expr.Config:
    """Returns a config column as W&B stores it, optimizer.value.lr. wandb-workspaces adds `value` in other places."""
    first, dot, rest = column.partition(".")
    return expr.Config(f"{first}.value{dot}{rest}")


def run_id(folder: str) -> str:
    """Returns a run's W&B id, the hash at the end of its folder's name."""
    return folder.rpartition("-")[2]


def run_colours(held: SweepRun) -> dict[str, str]:
    colour = shades(_sizes(held))
    return {run_id(run): colour[int(size)] for run, size in zip(held.runs["run"], held.runs["size"], strict=True)}


def _group_colours(held: SweepRun) -> dict[object, object]:
    """Returns the colours of the groups of each size and, nested, each LR. W&B knows a group by its values' text."""
    colour, found = shades(_sizes(held)), dict[object, object]()
    columns = [*_arm_columns(held), *_size_columns(held)]
    for *values, lr, size in held.runs[[*columns, LR, "size"]].itertuples(index=False):
        path = [as_text(value) for value in values]
        for deeper in ([], [as_text(lr)]):
            found[ws.GroupPath(*path, *deeper)] = colour[int(size)]
    return found


def as_text(value: Any) -> str:
    """Formats a value like JavaScript: 0.00001, 1e-8, 16 for 16.0, true."""
    if isinstance(value, float) and value == value:
        return np.format_float_positional(value, trim="-") if abs(value) >= 1e-6 else repr(value).replace("e-0", "e-")
    return value if isinstance(value, str) else json.dumps(jsonable(value))


def _size_columns(held: SweepRun) -> list[str]:
    """Returns the config columns that distinguish sizes: the model's name or, if ambiguous, its varying dimensions."""
    named = held.runs.groupby("model.name")["size"].nunique().max() == 1
    return ["model.name"] if named else [c for c in SHAPE if held.runs[c].nunique() > 1]


def _arm_columns(held: SweepRun) -> list[str]:
    return list(next(iter(held.settings.values())))


def _sizes(held: SweepRun) -> list[int]:
    return sorted({int(n) for n in held.runs["size"]})


def serialized(view: ws.Workspace | wr.Report) -> dict[str, Any]:
    """Returns the JSON sent to W&B. It relies on a private method, so the version of wandb-workspaces is pinned."""
    spec: dict[str, Any] = json.loads(view._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return spec
