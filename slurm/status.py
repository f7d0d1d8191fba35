"""`stabilab status FOLDER` shows the state of each run of a submitted sweep, its own and that in Slurm."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from slurm.runs import OPEN, Run
from slurm.runs import runs as runs_of
from train.cli.format import duration, number
from train.cli.tables import plain_table, print_table
from train.cli.terminal import Parser, exit_with, table_console

STYLE = {"finished": "green", "diverged": "red", "stopped": "magenta", "running": "yellow", "queued": "dim"}
MANY = 500
"""Most rows of a table with colours. Longer tables are plain text, because rich takes 3 ms per row."""
COLUMNS = ("run", "outcome", "status.json", "Slurm", "task", "step", "loss", "to go", "reason")


def cells(run: Run) -> list[str]:
    """Returns the cells of a run's row."""
    loss = run.summary.get("validation/loss_final") if run.summary else run.status.get("train/loss")
    step = run.summary.get("steps_done") if run.summary else run.status.get("step")
    steps = f"{step or 0}/{run.planned.values['steps']}" if run.planned else str(step or 0)
    seconds = run.seconds_left
    slurm = run.slurm.word if run.slurm else "-"
    reasons = [str(run.status.get("reason") or ""), run.slurm.reason if run.slurm else ""]
    return [
        run.name,
        run.outcome,
        run.state,
        slurm,
        run.task or "-",
        steps,
        number(loss),
        "-" if math.isnan(seconds) else duration(seconds),
        "; ".join(reason for reason in reasons if reason),
    ]


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of the table as plain text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() + "\n"


def show(runs: Sequence[Run], folder: Path) -> None:
    """Prints the table, the number of runs per outcome, and the command to use next."""
    from rich.markup import escape

    console = table_console(width=1000)
    if len(runs) > MANY:
        sys.stdout.writelines(aligned([COLUMNS, *map(cells, runs)]))
    else:
        table = plain_table()
        for name in COLUMNS:
            table.add_column(name, no_wrap=name != "reason")
        for run in runs:
            values = [escape(text) for text in cells(run)]
            values[1] = f"[{STYLE.get(values[1], 'bold red')}]{values[1]}[/]"
            table.add_row(*values)
        print_table(console, table, COLUMNS[0])
    outcomes = [run.outcome for run in runs]
    order = [*STYLE, *OPEN]
    console.print(", ".join(f"{outcomes.count(word)} {word}" for word in order if word in outcomes) + f" in {folder}")
    if open_ := [word for word in OPEN if word in outcomes]:
        console.print(f"submit them again: stabilab resubmit {folder} --only {','.join(open_)}", soft_wrap=True)
    elif set(outcomes) <= {"finished", "diverged", "stopped"}:
        console.print(f"judge and plot them: stabilab report {folder}", soft_wrap=True)


def main() -> None:
    parser = Parser(prog="stabilab status", description=__doc__)
    parser.add_argument("folder", type=Path, help="sweep folder")
    folder = parser.parse_args().folder
    show(runs_of(folder, lambda fault: print(f"{fault}; states are from status.json alone", file=sys.stderr)), folder)


if __name__ == "__main__":
    exit_with(main)
