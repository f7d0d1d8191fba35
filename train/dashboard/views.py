"""The workspace and the report of a sweep in wandb-workspaces' terms: runs by arm, sizes by colour.

Runs are those that the sweep lists, by W&B's id, since it may share them with another sweep and so with another group;
and the sweep's own run as it is now. Filters are written with `in`, as W&B's own pages write them.
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
from train.dashboard.panels import Panels, shades
from train.loggers.mirror import STEP
from train.results.sweep import SHAPE
from train.results.verdict import jsonable

COLUMNS = (
    "run:displayName", "run:state", "config:model.value.name", "config:optimizer.value.lr", "config:seed.value",
    "summary:N", "summary:validation/loss", "summary:state", "summary:logit_max", "summary:entropy_final",
)  # fmt: skip
LR = "optimizer.lr"


def workspace(held: SweepRun, sections: Mapping[str, Panels], *, entity: str, project: str) -> ws.Workspace:
    """Runs grouped by arm, size and LR, so that a line is a mean over seeds; groups and runs in their size's colour."""
    group: list[Any] = [*(expr.Config(c) for c in [*_arm_columns(held), *_size_columns(held), LR])]
    opened = ("LR sensitivity", "Attention")
    return ws.Workspace(
        entity=entity,
        project=project,
        name=view_name(held.name),
        sections=[ws.Section(name=n, panels=p, is_open=n in opened) for n, p in sections.items()],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=min(100, len(held.runs) + 1)),
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
    """Claim, source, verdict, table as text; then each section's panels, over a run set an arm and the sweep's run."""
    finding = held.verdict
    blocks: list[Any] = []
    if finding:
        blocks += [wr.H1("Claim"), wr.P(finding.claim), wr.P(f"Source: {finding.source}")]
    if not held.single:
        blocks += [wr.H1("Verdict" if finding else "LR sensitivity"), wr.MarkdownBlock(held.text)]
    if held.trouble:
        blocks += [wr.P(f"No verdict: {held.trouble}")]
    sizes = ", ".join(f"N = {size_label(n)} {colour}" for n, colour in shades(_sizes(held)).items())
    blocks += [wr.P(f"A run set for each arm; a colour for each size: {sizes}. The x axis is the optimizer step.")]
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
    """One for each arm and one with the run of a sweep. Without entity and project they are those of the report."""
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
    """A config column as W&B's own filters write it, optimizer.value.lr; wandb-workspaces puts in `value` elsewhere."""
    first, dot, rest = column.partition(".")
    return expr.Config(f"{first}.value{dot}{rest}")


def run_id(folder: str) -> str:
    """W&B's id of a run, the hash at the end of its folder's name."""
    return folder.rpartition("-")[2]


def run_colours(held: SweepRun) -> dict[str, str]:
    colour = shades(_sizes(held))
    return {run_id(run): colour[int(size)] for run, size in zip(held.runs["run"], held.runs["size"], strict=True)}


def _group_colours(held: SweepRun) -> dict[object, object]:
    """Of the groups for a size and, below it, for an LR; W&B knows a group by the text of its values."""
    colour, found = shades(_sizes(held)), dict[object, object]()
    columns = [*_arm_columns(held), *_size_columns(held)]
    for *values, lr, size in held.runs[[*columns, LR, "size"]].itertuples(index=False):
        path = [as_text(value) for value in values]
        for deeper in ([], [as_text(lr)]):
            found[ws.GroupPath(*path, *deeper)] = colour[int(size)]
    return found


def as_text(value: Any) -> str:
    """As JavaScript writes it: 0.00001, 1e-8, 16 for 16.0, true."""
    if isinstance(value, float) and value == value:
        return np.format_float_positional(value, trim="-") if abs(value) >= 1e-6 else repr(value).replace("e-0", "e-")
    return value if isinstance(value, str) else json.dumps(jsonable(value))


def _size_columns(held: SweepRun) -> list[str]:
    """The config that tells sizes apart: the model's name, or what differs of its shape where names don't."""
    named = held.runs.groupby("model.name")["size"].nunique().max() == 1
    return ["model.name"] if named else [c for c in SHAPE if held.runs[c].nunique() > 1]


def _arm_columns(held: SweepRun) -> list[str]:
    return list(next(iter(held.settings.values())))


def _sizes(held: SweepRun) -> list[int]:
    return sorted({int(n) for n in held.runs["size"]})


def serialized(view: ws.Workspace | wr.Report) -> dict[str, Any]:
    """What W&B is sent; wandb-workspaces has no public way to it, hence its pinned version."""
    spec: dict[str, Any] = json.loads(view._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return spec
