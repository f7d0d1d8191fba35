"""The live table of a sweep: one cell per run, the last key of the grid as columns, all others as rows."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from train.cli.format import duration, number
from train.cli.tables import fitted, line, plain_table
from train.cli.terminal import table_console
from train.runfolder.folder import ENDED, STOPPED, RunFolder
from train.sweeps.early_stop import stays_stopped, stopped_above
from train.sweeps.plan import Sweep

STYLE = {
    "finished": "green", "diverged": "red", STOPPED: "magenta", "failed": "bold white on red", "running": "yellow",
    "pending": "dim",
}  # fmt: skip
DONE = (*ENDED, STOPPED)


INDENT = 9
"""Characters before the line of a run, which hold the number of runs done."""


class LiveTable:
    """Shows the state of a sweep: a table redrawn twice a second on a terminal, a line per ended run in a log."""

    def __init__(self, sweep: Sweep, jobs: int, force: bool = False, brief: bool = False) -> None:
        """Expects `force` where runs that have ended are trained again.

        With `brief`, no table and no advice are printed at the end, because more runs follow.
        """
        self.sweep, self.jobs, self.brief = sweep, jobs, brief
        self.console = table_console()
        self.rows, self.columns, self.cells = _grid(sweep.points, sweep.arms)
        self.started = self._drawn = time.monotonic()
        before = [] if force else sweep.runs()
        self.since = time.time() if force else 0.0
        self.status = {config.run_name(): dict[str, Any]() for config in sweep.configs}
        self.status |= {run.path.name: run.status() for run in before}
        for config in sweep.configs:
            status = self.status[config.run_name()]
            if status.get("state") == STOPPED and not stays_stopped(config, status):
                status["state"] = "pending"
        self.summary = {run.path.name: run.summary() for run in before}
        self.cost = {c.run_name(): c.steps * c.batch_size * c.context * relative_cost(c) for c in sweep.configs}
        self.before = sum(self.cost[n] for n, s in self.status.items() if s.get("state") in DONE)
        self.live: Live | None = None

    def __enter__(self) -> LiveTable:
        done = sum(s.get("state") in DONE for s in self.status.values())
        again = " (force=true trains them again)" if done else ""
        text = f"{len(self.status)} runs in {self.sweep.folder}, {done} done already{again}, {self.jobs} at a time"
        self.console.print(text, soft_wrap=True)
        if self.console.is_terminal:
            self.live = Live(console=self.console, auto_refresh=False)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.update(self._table(), refresh=True)
            self.live.stop()

    def update(self, ended: list[str], running: list[str]) -> None:
        """Reads the status of ended and running runs again, and redraws."""
        for name in {*ended, *running, *(n for n, s in self.status.items() if s.get("state") == "running")}:
            run = RunFolder(self.sweep.folder / name)
            status = run.status()
            # A run that is trained again still has the files of its former training until it starts.
            self.status[name] = status if status.get("time", math.inf) >= self.since else {"state": "pending"}
            # A run has ended before its process has, which may still send its last rows.
            if name in ended or self.status[name].get("state") in ENDED:
                self.summary[name] = run.summary()
        if self.live is not None:
            if ended or time.monotonic() - self._drawn > 0.5:
                self._drawn = time.monotonic()
                self.live.update(Group(self._table(), *self._running(running)), refresh=True)
        else:
            for name in ended:
                self.console.print(f"{self._done():>{INDENT - 2}}  {self._line(name, self._eta())}", soft_wrap=True)

    def _table(self) -> RenderableType:
        """Returns the table, whose columns are the values of one key if all columns set the same one."""
        keys = {column.partition("=")[0] for column in self.columns}
        shared = keys.pop() if len(keys) == 1 and "=" in self.columns[0] else None
        corner = "validation loss" if shared is None else f"validation loss, by {shared}"
        headings = self.columns if shared is None else [column.partition("=")[2] for column in self.columns]
        title = f"{self.sweep.folder.name}: {self._done()} runs, {self._eta()}"
        table = plain_table(corner, *headings, left=(corner,), title=title)
        for row in self.rows:
            table.add_row(Text(row), *[self._cell(self.cells.get((row, column))) for column in self.columns])
        return fitted(self.console, table, corner)

    def _cell(self, index: int | None) -> Text:
        if index is None:
            return Text("")
        name = self.sweep.configs[index].run_name()
        status = self.status[name]
        state = str(status.get("state", "pending"))
        if state in ENDED:
            found = self.summary.get(name) or {}
            text = number(found.get("validation/loss_final")) if state == "finished" else "diverged"
        elif state == "running":
            text = f"{100 * (status.get('step') or 0) // self.sweep.configs[index].steps}%"
        else:
            text = "." if state == "pending" else state
        return Text(text, style=STYLE.get(state, ""))

    def _running(self, names: list[str]) -> list[Text]:
        return [Text(self._line(name), style="dim") for name in names]

    def _line(self, name: str, *others: str) -> str:
        """Returns state and numbers of a run, then `others`, then as much of its name as the line has room for."""
        status, summary = self.status[name], self.summary.get(name) or {}
        state = str(status.get("state", "pending"))
        if summary:
            loss, logit = number(summary["validation/loss_final"]), number(summary["logit_max"])
            parts = [state, f"loss {loss}", f"max logit {logit}", f"in {duration(summary['seconds'])}"]
        elif state == "running":
            loss, logit = number(status.get("train/loss")), number(status.get("attention/logit_max"))
            lr = f"lr {status.get('train/lr') or 0:.1e}"
            parts = [f"step {status.get('step', 0)}", f"loss {loss}", lr, f"max logit {logit}"]
        else:
            parts = [state, status.get("reason") or ""]
        return line([*parts, *others], name, self.console.width - INDENT)

    def _done(self) -> str:
        return f"{sum(s.get('state') in DONE for s in self.status.values())}/{len(self.status)}"

    def _eta(self) -> str:
        """Returns elapsed and remaining time as text, from the share of the total cost done so far."""
        elapsed = time.monotonic() - self.started
        total = done = 0.0
        for config in self.sweep.configs:
            name = config.run_name()
            state = self.status[name].get("state")
            share = 1.0 if state in (*DONE, "failed") else 0.0
            if state == "running":
                share = (self.status[name].get("step") or 0) / config.steps
            total += self.cost[name]
            done += self.cost[name] * share
        fresh = done - self.before
        left = duration(elapsed * (total - done) / fresh) if fresh > 0 else "?"
        return f"{duration(elapsed)} so far" + (f", {left} to go" if done < total else "")

    def print_end(self) -> int:
        """Prints how many runs are in which state and where they are. Returns the exit code, 1 if any has not ended."""
        states = [s.get("state", "pending") for s in self.status.values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in STYLE if state in states)
        if self.live is None and not self.brief:
            self.console.print(self._table())
        self.console.print(f"{counts} in {duration(time.monotonic() - self.started)}{self._saved()}")
        for name, status in self.status.items():
            if status.get("state") not in DONE:
                reason = status.get("reason") or self._why_open(name, status)
                self.console.print(f"  {name}: {reason}", style="red", soft_wrap=True)
        if not self.brief:
            self.console.print(f"judge and draw: stabilab report {self.sweep.folder}", soft_wrap=True)
        return int(any(state not in DONE for state in states))

    def _why_open(self, name: str, status: Mapping[str, Any]) -> str:
        folder = RunFolder(self.sweep.folder / name)
        if folder.is_claimed():
            return f"process {status.get('pid')} of another command is training it"
        return f"its process ended without a result, see {folder.path / 'log.txt'}"

    def _saved(self) -> str:
        """Returns how much of the sweep's training was saved by stopping broken runs, or nothing if none was."""
        steps = {config.run_name(): config.steps for config in self.sweep.configs}
        parts = [
            self.cost[name] * (1 - status["step"] / steps[name])
            for name, status in self.status.items() if stopped_above(status) is not None
        ]  # fmt: skip
        share = sum(parts) / sum(self.cost.values())
        return f"; stop_when=broken saved {share:.0%} of the sweep's training" if parts else ""


def relative_cost(config: Any) -> float:
    """Returns a rough relative cost per token: the blocks, the head, and a constant overhead."""
    return 12 * config.model.depth * config.model.width**2 + config.model.width * config.data.vocab_size + 2e5


def _grid(points: list[list[str]], arms: list[str | None]) -> tuple[list[str], list[str], dict[tuple[str, str], int]]:
    """Returns row labels, column labels and the index of the point in each cell.

    Labels consist of the name of the arm and the overrides that differ between its points.
    """
    common: dict[str | None, set[str]] = {}
    for arm, point in zip(arms, points, strict=True):
        common[arm] = common.get(arm, set(point)) & set(point)
    if len(points) == 1:
        common = {arms[0]: set()}
    rows, columns, cells = dict[str, None](), dict[str, None](), {}
    for index, (arm, point) in enumerate(zip(arms, points, strict=True)):
        varying = [override for override in point if override not in common[arm]]
        row = " ".join([*([arm] if arm else []), *varying[:-1]])
        column = varying[-1] if varying else "run"
        rows[row] = columns[column] = None
        cells[row, column] = index
    return list(rows), list(columns), cells
