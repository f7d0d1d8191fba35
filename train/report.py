"""`stabilab report FOLDER` writes figures, tables and the verdict of a sweep, or the curves of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conf.axis import ConfigError
from train.cli.tables import in_folder, plain_table, print_table
from train.cli.terminal import Parser, exit_with, named_folder, say, table_console
from train.findings.own import finding_of
from train.measure.kept import with_measured
from train.results.arms import with_arms
from train.results.figures import loss_against_lr, run_curves
from train.results.floors import floors_text
from train.results.page.html import Judged, write_joint_page, write_page, write_run_page
from train.results.stopped import stopped_text
from train.results.style import save
from train.results.sweep import Metrics, SweepResults, load_sweep, row_of, together
from train.results.table import cells, table, titles
from train.results.verdict import COLOURS, Verdict
from train.runfolder.files import read_json, write_atomically
from train.runfolder.folder import RunFolder, is_run, require_format

if TYPE_CHECKING:
    import pandas as pd


def markdown(sweep: SweepResults, found: pd.DataFrame, verdict: Verdict | None) -> str:
    """Returns the text of table.md: the verdict with its checks, the table, and notes."""
    from train.cli.axes import markdown as escaped  # loads torch

    lines = [f"# {sweep.name}", ""]
    if verdict:
        lines += [
            f"**{verdict.finding}: {verdict.state}{_because(verdict)}.** {verdict.claim} ({verdict.source})",
            "",
        ]
        lines += [f"{verdict.fitness}.", ""] if verdict.fitness else []
        lines += ["| check | | figures |", "|---|---|---|"]
        lines += [
            f"| {'**' if not i else ''}{escaped(c.claim)}{' (decides)**' if not i else ''} | {MARKS[c.passed]} | "
            f"{escaped(c.text)} |"
            for i, c in enumerate(verdict.checks)
        ]
        lines += [""]
    lines += [floors, ""] if (floors := floors_text(sweep.runs)) else []
    columns = titles(found)
    lines += ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(map(escaped, row)) + " |" for row in cells(found)]
    lines += ["", *(f"- {note}" for note in (verdict.notes if verdict else ()))]
    lines += [f"- {stopped}"] if not verdict and (stopped := stopped_text(sweep.runs)) else []
    lines += [f"- {escaped(left_out)}"] if (left_out := sweep.left_out()) else []
    return "\n".join(lines).rstrip() + "\n"


def _because(verdict: Verdict) -> str:
    return f" ({verdict.reason})" if verdict.reason else ""


MARKS = {True: "pass", False: "FAIL", None: "open"}


def write_report(sweep: SweepResults) -> Verdict | None:
    """Writes and prints the report in SWEEP/report/, and returns the verdict, or None if it tests no claim."""
    folder = sweep.path / "report"
    folder.mkdir(exist_ok=True)
    found, verdict, figures, trouble = table(sweep.runs), None, {}, None
    if len(sweep.ended):
        figures = {"loss_against_lr": loss_against_lr(with_arms(sweep.runs)[sweep.runs["ended"]])}
    try:
        if finding := finding_of(sweep):
            sweep = with_measured(sweep, finding.measurements)
            verdict = finding.verdict(sweep.runs, sweep.metrics)
            if len(sweep.ended):
                figures = finding.draw(sweep.runs, sweep.metrics, verdict.headline)
    except ConfigError as fault:
        trouble = str(fault)
    former = {"loss_against_lr", *read_json(folder / "verdict.json").get("figures", ())}
    write_atomically(folder / "runs.csv", sweep.runs.to_csv(index=False))
    write_atomically(folder / "table.csv", found.to_csv(index=False))
    write_atomically(folder / "table.md", markdown(sweep, found, verdict))
    if verdict:
        shown = verdict.to_json() | {"figures": list(figures)}
        write_atomically(folder / "verdict.json", json.dumps(shown, indent=1))
    else:  # One of an earlier report, when the sweep had a claim, is not of these runs.
        (folder / "verdict.json").unlink(missing_ok=True)
    for name, figure in figures.items():
        save(figure, folder / name)
    for name in former - figures.keys():
        for file in _files_of(folder / name):
            file.unlink(missing_ok=True)
    page = write_page(sweep, found, verdict, trouble)
    print_report(sweep, found, verdict, trouble)
    names = ["runs.csv", "table.csv", "table.md", *(["verdict.json"] if verdict else [])]
    drawn = [file for name in figures for file in _files_of(folder / name)]
    table_console(markup=False).print(in_folder(sorted([page, *drawn, *(folder / name for name in names)])))
    return verdict


def _files_of(figure: Path) -> list[Path]:
    return [figure.with_suffix(suffix) for suffix in (".pdf", ".png")]


def print_report(sweep: SweepResults, found: pd.DataFrame, verdict: Verdict | None, trouble: str | None) -> None:
    from rich.markup import escape

    console = table_console()
    shown = plain_table(*titles(found).values(), left=("arm",), title=sweep.name)
    for row in cells(found):
        shown.add_row(*map(escape, row))
    if floors := floors_text(sweep.runs):
        console.print(floors, highlight=False)
    print_table(console, shown, less=("diverged", "bits/byte", "max logit there", "runs"))
    if not verdict and (stopped := stopped_text(sweep.runs)):
        console.print(stopped, soft_wrap=True)
    if left_out := sweep.left_out():
        console.print(escape(left_out))
    if trouble:
        console.print(f"no verdict: {escape(trouble)}")
    if verdict:
        colour = {True: "green", False: "red", None: "yellow"}
        state = f"[bold {COLOURS[verdict.state]}]{verdict.state}[/]"
        console.print(f"\n{verdict.finding}: {state}{escape(_because(verdict))}")
        if verdict.fitness:
            say(console, "  ", escape(str(verdict.fitness)))
        for i, check in enumerate(verdict.checks):
            decides = "" if i else " (decides)"
            mark = f"[{colour[check.passed]}]{MARKS[check.passed]}[/]"
            say(console, f"  {mark}  ", f"{escape(check.claim)}{decides}")
            say(console, "        ", escape(check.text))
        for note in verdict.notes:
            say(console, "  note  ", escape(note))
        console.print()


def report_run(path: Path) -> None:
    """Writes the curves of one run to its report/ folder. Raises ConfigError if it has no metrics yet."""
    require_format([RunFolder(path)], path)
    rows = Metrics({path.name: RunFolder(path)})[path.name]
    if rows.empty or not (rows["step"] >= 0).any():
        raise ConfigError(f"{path} has no metrics yet: wait for its first watch step")
    folder = path / "report"
    folder.mkdir(exist_ok=True)
    page = write_run_page(path, row_of(RunFolder(path), None), RunFolder(path).metrics())
    print(in_folder([*save(run_curves(rows), folder / "curves"), page]))


def report_together(paths: Sequence[Path]) -> None:
    """Writes one page of several sweeps, with a verdict each, to the report/ folder of the first."""
    if runs := [path for path in paths if is_run(path)]:
        raise ConfigError(f"{runs[0]} is a run: name one run, or sweeps to show on one page")
    sweeps = [load_sweep(path) for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(f"{paths[0]} is named twice: name different sweeps")
    measured, verdicts = zip(*map(judged, sweeps), strict=True)
    both = together(measured)
    folder = sweeps[0].path / "report"
    folder.mkdir(exist_ok=True)
    print(write_joint_page(both, table(both.runs), verdicts, folder / f"{_joint_name(sweeps)}.html"))


def _joint_name(sweeps: Sequence[SweepResults]) -> str:
    """Returns the names of the sweeps as that of a file, cut and with a hash where a file system has no room for it."""
    name = "+".join(sweep.path.name for sweep in sweeps)
    return name if len(name) <= 100 else f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def judged(sweep: SweepResults) -> tuple[SweepResults, Judged]:
    """Measures what the sweep's claim asks for, and returns the sweep with it and the verdict."""
    try:
        if not (finding := finding_of(sweep)):
            return sweep, Judged()
        sweep = with_measured(sweep, finding.measurements)
        return sweep, Judged(finding.verdict(sweep.runs, sweep.metrics))
    except ConfigError as fault:
        return sweep, Judged(trouble=str(fault))


def report(*paths: Path) -> None:
    if len(paths) > 1:
        report_together(paths)
    elif is_run(paths[0]):
        report_run(paths[0])
    else:
        write_report(load_sweep(paths[0]))


def main() -> None:
    parser = Parser(prog="stabilab report", description=__doc__)
    parser.add_argument(
        "folder", type=named_folder, nargs="+", help="sweep folder, run folder, or sweeps to show on one page"
    )
    folders = parser.parse_args().folder
    exit_with(lambda: report(*folders))


if __name__ == "__main__":
    main()
