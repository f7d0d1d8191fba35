"""What a person sees in the terminal: progress of a run, its summary, and one line for what went wrong."""

from __future__ import annotations

import errno
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from conf.axis import ConfigError
from train.run.interrupt import Interrupted
from train.runfolder.folder import RunFolder

if TYPE_CHECKING:
    from rich.console import Console

    from train.config.schema import Config
    from train.run.recorder import Row

USAGE_ERROR = 2
STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""What a disk or its owner refuses: a full disk, a quota, a limit on sizes, a folder that can't be written."""


def exit_with(action: Callable[[], None]) -> None:
    """Runs a command: bad input is one line and exit code 2, a full disk one line and 1, an interruption one line and
    128 + signal."""
    try:
        action()
    except OSError as fault:
        if fault.errno not in STORAGE:
            raise
        print(f"error: {fault.filename or 'output'}: {fault.strerror}: the same command goes on", file=sys.stderr)
        sys.exit(1)
    except ConfigError as fault:
        print(f"error: {' '.join(str(fault).split())}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except Interrupted as stop:
        print(f"stopped by {stop}; the same command goes on from the checkpoint", file=sys.stderr)
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def table_console(width: int = 200, **options: Any) -> Console:
    """As wide as the terminal; a log has no edge at which to break a table."""
    from rich.console import Console

    console = Console(highlight=False, **options)
    if not console.is_terminal:
        console.width = width
    return console


def number(value: Any, digits: int = 3) -> str:
    """Short text of a number: four significant digits, exponent beyond 1e5; - for none."""
    if not isinstance(value, int | float):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.{digits}f}" if 1e-2 <= abs(value) < 100 else f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class Progress:
    """A line with step, loss, LR, largest logit, speed and ETA: redrawn on a terminal, every ten seconds in a log."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._bar: Any = None
        self._task: Any = None
        self._printed = 0.0

    def __enter__(self) -> Progress:
        if self.config.progress and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(20),
                MofNCompleteColumn(),
                TextColumn("{task.fields[line]}"),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self.config.readable(), total=self.config.steps, line="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def report(self, row: Row) -> None:
        if not self.config.progress:
            return
        parts = [f"loss {number(row['loss'])}", f"lr {row['lr']:.2e}"]
        if "attention/logit_max" in row:
            parts.append(f"max logit {number(row['attention/logit_max'])}")
        parts.append(f"{row['tokens_per_second']:,.0f} tok/s")
        line, step = "  ".join(parts), row["step"] + 1
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, line=line)
        elif time.monotonic() - self._printed >= 10:
            left = (self.config.steps - step) * self.config.batch_size * self.config.context / row["tokens_per_second"]
            self._printed = time.monotonic()
            print(f"step {step}/{self.config.steps}  {line}  ETA {duration(left)}", file=sys.stderr, flush=True)


def say_summary(config: Config, summary: dict[str, Any], folder: RunFolder) -> None:
    """What a run found, and where it is."""
    state = summary["state"]
    if state == "diverged":
        state += f" at step {summary['diverged_step']}"
    logits = f"{number(summary['logit_max_final'])} at the end, {number(summary['logit_max'])} at most"
    entropy = f"{number(summary['entropy_final'])} nats at the end, least {number(summary['entropy_min'])}"
    rows = {
        "state": state,
        "model": f"{config.model.name}, N = {summary['N']:,} of {summary['parameters']:,} parameters",
        "trained": f"{summary['steps_done']:,} steps, {summary['tokens']:,} tokens in {duration(summary['seconds'])}",
        "validation loss": f"{number(summary['loss_init'])} at init, {number(summary['loss_final'])} at the end",
        "max attention logit": logits,
        "attention entropy": entropy,
        "gradient RMS / eps": f"{number(summary['final'].get('adam/gradient_over_eps_min'))} at the end, least tensor",
        "folder": folder.path,
        "curves": f"python -m train.report {folder.path}",
    }
    for name, text in rows.items():
        print(f"{name:21}{text}")
