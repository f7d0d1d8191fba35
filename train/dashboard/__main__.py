"""`stabilab dashboard SWEEP`: creates or updates the W&B workspace and report of a sweep.

LR sensitivity, the verdict and the table are logged as an additional run of the sweep's group. Run the same command
again to update everything after more runs. Given a run folder, it shows the same views of one run. With --json it
writes both views to a file and needs no network.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from conf.axis import ConfigError
from train.cli.terminal import Parser, exit_with, named_folder
from train.loggers.wandb import require_server, server
from train.results.sweep import SweepResults, load_run, load_sweep
from train.run.process import environment
from train.runfolder.files import read_json, write_atomically
from train.runfolder.folder import is_run
from train.sync import unsent

PROJECT = "stabilab"


def configured(sweep: SweepResults, field: str) -> str | None:
    """Returns the W&B project or entity of the sweep's runs. Raises ConfigError if they have several."""
    column = f"logger.{field}"
    found = sorted({v for v in sweep.runs[column] if isinstance(v, str)}) if column in sweep.runs else []
    if len(found) > 1:
        raise ConfigError(f"runs of {sweep.path} have several W&B {field}s, {', '.join(found)}: choose with --{field}")
    return found[0] if found else None


def save(views: dict[str, Any], folder: Path, where: str) -> None:
    """Creates workspace and report in W&B, or updates those recorded in FOLDER/dashboard.json."""
    path = folder / "dashboard.json"
    known = read_json(path)
    ours = known.get(where, {})
    workspace, report = views["workspace"], views["report"]
    workspace._internal_name, workspace._internal_id = ours.get("workspace", ["", ""])
    report.id = ours.get("report", "")
    workspace.save()
    write_atomically(path, json.dumps(known | {where: ours | _ids(workspace, report)}, indent=1))
    report.save()
    write_atomically(path, json.dumps(known | {where: _ids(workspace, report)}, indent=1))
    print(f"workspace  {workspace.url}\nreport     {report.url}")


def _ids(workspace: Any, report: Any) -> dict[str, Any]:
    ids = {"workspace": [workspace._internal_name, workspace._internal_id], "report": report.id}
    return {name: value for name, value in ids.items() if value}


def dashboard(folder: Path, project: str | None, entity: str | None, file: Path | None) -> None:
    """Builds the views of a sweep or run and sends them to W&B, or writes them to `file` if it is given.

    Raises ConfigError if there is nothing to show yet or W&B can't be reached.
    """
    if file is None:
        require_server("send a dashboard", "or add --json FILE to write a file instead")
    single = is_run(folder)
    sweep = load_run(folder) if single else load_sweep(folder)
    project = project or configured(sweep, "project") or PROJECT
    entity = entity or configured(sweep, "entity")

    from train.dashboard.curves import log, sweep_run
    from train.dashboard.panels import Sections, logged
    from train.dashboard.views import report, serialized, workspace

    names = logged(sweep)
    if not names:
        raise ConfigError(f"no run of {folder} has metrics yet: try again after the first watch step")
    held = sweep_run(sweep, single)
    builder = Sections(held, names, {c for c in sweep.runs if sweep.runs[c].notna().any()})
    sections = builder.build()
    if file is None:
        views = _send(held, sections, sweep, project, entity)
        save(views, folder, f"{views['workspace'].entity}/{project}")
    else:
        made = [make(held, sections, entity=entity or "", project=project) for make in (workspace, report)]
        texts = dict(zip(("workspace", "report"), map(serialized, made), strict=True))
        try:
            write_atomically(file, json.dumps(texts, indent=1))
        except OSError as error:
            raise ConfigError(f"--json {file}: {error.strerror}: choose a file that can be written") from None
        print(f"workspace and report  {file}")
        if not single:
            run = log(held, sweep.path, project=project, entity=entity, offline=True)
            print(f"run of the sweep      {run}, send it with `wandb sync`")
    _summarize(sweep, held, sections, builder.left_out)


def _send(held: Any, sections: Any, sweep: SweepResults, project: str, entity: str | None) -> dict[str, Any]:
    import wandb

    from train.dashboard.curves import log
    from train.dashboard.views import report, workspace

    entity = entity or wandb.Api().default_entity
    if not entity:
        raise ConfigError("the W&B key has no default entity: choose one with --entity")
    if not held.single:
        log(held, sweep.path, project=project, entity=entity, offline=False)
    views = {"workspace": workspace, "report": report}
    return {name: make(held, sections, entity=entity, project=project) for name, make in views.items()}


def _summarize(sweep: SweepResults, held: Any, sections: Any, left_out: list[str]) -> None:
    panels = sum(map(len, sections.values()))
    verdict = f"; {held.verdict.finding}: {held.verdict.state}" if held.verdict else ""
    over = f"run {held.name}" if held.single else f"{len(held.runs)} runs of group {held.name}"
    print(f"{panels} panels in {len(sections)} sections over {over}{verdict}")
    if held.trouble:
        print(f"no verdict: {held.trouble}")
    if left_out:
        print(f"left out, because no run logs them: {'; '.join(left_out)}")
    if (sweep.runs.get("logger.name") == "none").all():
        print("these runs used logger=none, so W&B has none of them")
    elif waiting := [file for run in sweep.runs["run"] for file in unsent(sweep.metrics.folders[run].path)]:
        folder = sweep.path / held.name if held.single else sweep.path
        print(f"{len(waiting)} W&B files have not been sent: run stabilab sync {folder}")


def main() -> None:
    parser = Parser(prog="stabilab dashboard", description=__doc__)
    parser.add_argument("folder", type=named_folder, help="sweep folder or run folder")
    parser.add_argument("--project", help="W&B project (default: that of the runs)")
    parser.add_argument("--entity", help="W&B team or user (default: that of the runs, else the owner of the key)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write both views to FILE and send nothing")
    chosen = parser.parse_args()
    exit_with(lambda: _run(chosen))


def _run(chosen: argparse.Namespace) -> None:
    try:
        with environment(WANDB_SILENT=os.environ.get("WANDB_SILENT", "true")):
            dashboard(chosen.folder, chosen.project, chosen.entity, chosen.json)
    except ConfigError:
        raise
    except Exception as fault:
        if not type(fault).__module__.startswith(("wandb", "requests")):
            raise
        raise ConfigError(f"{server()} refused the dashboard: {' '.join(str(fault).split())[:300]}") from None


if __name__ == "__main__":
    main()
