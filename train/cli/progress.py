"""The progress line of a run, and the summary printed at its end."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from train.cli.format import duration, number
from train.runfolder.folder import RunFolder

if TYPE_CHECKING:
    from train.config.schema import Config
    from train.run.recorder import MetricsRow


class Progress:
    """Shows step, loss, LR, largest logit, speed and ETA: a redrawn line on a terminal, one every 10 s in a log."""

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

    def report(self, row: MetricsRow) -> None:
        if not self.config.progress:
            return
        parts = [f"loss {number(row['train/loss'])}", f"lr {row['train/lr']:.2e}"]
        if "attention/logit_max" in row:
            parts.append(f"max logit {number(row['attention/logit_max'])}")
        parts.append(f"{row['train/tokens_per_second']:,.0f} tok/s")
        line, step = "  ".join(parts), row["step"] + 1
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, line=line)
        elif time.monotonic() - self._printed >= 10:
            tokens_left = (self.config.steps - step) * self.config.batch_size * self.config.context
            left = tokens_left / row["train/tokens_per_second"]
            self._printed = time.monotonic()
            print(f"step {step}/{self.config.steps}  {line}  ETA {duration(left)}", file=sys.stderr, flush=True)


def print_summary(config: Config, summary: dict[str, Any], folder: RunFolder) -> None:
    """Prints the results of a run and the path of its folder."""
    state = summary["state"]
    if state == "diverged":
        state += f" at step {summary['diverged_step']}"
    logits = f"{number(summary['logit_max_final'])} at the end, {number(summary['logit_max'])} at its peak"
    entropy = f"{number(summary['entropy_final'])} nats at the end, {number(summary['entropy_min'])} at its lowest"
    first, final = summary["validation/loss_init"], summary["validation/loss_final"]
    active = f", {summary['N_active']:,} of N active" if "N_active" in summary else ""
    rows = {
        "state": state,
        "model": f"{config.model.name}, N = {summary['N']:,} of {summary['parameters']:,} parameters{active}",
        "trained": f"{summary['steps_done']:,} steps, {summary['tokens']:,} tokens in {duration(summary['seconds'])}",
        "validation loss": f"{number(first)} at init, {number(final)} at the end{_beside(summary)}",
        "training loss": f"{number(summary['train/loss'])}, mean over the last 1 % of steps",
        "max attention logit": logits,
        "attention entropy": entropy,
        "gradient RMS / eps": f"{number(summary['final'].get('adam/gradient_over_eps_min'))} at the end, lowest tensor",
        "folder": folder.path,
        "curves": f"python -m train.report {folder.path}",
    }
    for name, text in rows.items():
        print(f"{name:21}{text}")


def _beside(summary: dict[str, Any]) -> str:
    """Returns what to show beside the final loss: bigram floor, bits per byte of text, and accuracy of answers."""
    floor, bits, right = (summary.get(k) for k in ("floor/bigram", "validation/bits_per_byte", "validation/accuracy"))
    text = "" if floor is None else f" (bigram {number(floor)})"
    text += "" if bits is None else f", {number(bits)} bits per byte"
    return text if right is None else f"{text}, {right:.1%} of answers right"
