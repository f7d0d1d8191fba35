"""The progress line of a run, and the summary printed at its end."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from train.cli.format import duration, number
from train.cli.tables import line
from train.runfolder.folder import RunFolder

if TYPE_CHECKING:
    from rich.live import Live

    from data.batches import Prepared
    from train.config.schema import Config
    from train.run.recorder import MetricsRow


REPORT_SECONDS = 10
"""Least time between two lines in a log."""


class Progress:
    """Shows step, bar, loss, LR, largest logit, ETA, speed and name: a line redrawn on a terminal, or lines in a log.

    A narrow terminal cuts the name first, then leaves out the last of the others. A log has no bar and no colours, and
    its lines are as long as they are unless $COLUMNS is set.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._live: Live | None = None
        self._row: MetricsRow | None = None
        self._printed = 0.0

    def __enter__(self) -> Progress:
        if self.config.progress and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live
            from rich.text import Text

            console = Console(stderr=True)
            self._live = Live(
                console=console,
                transient=True,
                refresh_per_second=4,
                get_renderable=lambda: Text(self.line(console.width - 1, bar=True), no_wrap=True),
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def announce(self, prepared: Prepared) -> None:
        """Prints what the run trains on."""
        if self.config.progress:
            line = data_line(self.config, prepared)
            if self._live is None:
                print(line, file=sys.stderr, flush=True)
            else:
                self._live.console.print(line, highlight=False, soft_wrap=True)

    def report(self, row: MetricsRow) -> None:
        if not self.config.progress:
            return
        self._row = row
        if self._live is None and time.monotonic() - self._printed >= REPORT_SECONDS:
            self._printed = time.monotonic()
            columns = os.environ.get("COLUMNS", "")
            print(self.line(int(columns) if columns.isdigit() else None), file=sys.stderr, flush=True)

    def line(self, width: int | None, bar: bool = False) -> str:
        """Returns the newest state on one line of at most `width` characters, if given."""
        row, steps = self._row or {}, self.config.steps
        step = row.get("step", -1) + 1
        parts = [f"step {step}/{steps}", self._bar(step / steps) if bar else ""]
        if row:
            rate = row["train/tokens_per_second"]
            left = duration((steps - step) * self.config.batch_size * self.config.context / rate)
            parts += [f"loss {number(row['train/loss'])}", f"lr {row['train/lr']:.1e}"]
            if "attention/logit_max" in row:
                parts.append(f"max logit {number(row['attention/logit_max'])}")
            parts += [f"ETA {left}", f"{rate:,.0f} tok/s"]
        return line(parts, self.config.readable(), width)

    def _bar(self, share: float) -> str:
        done, left = ("━", "─") if "utf" in (sys.stderr.encoding or "").lower() else ("#", "-")
        filled = round(BAR * share)
        return done * filled + left * (BAR - filled)


BAR = 10
"""Characters of the bar."""


def data_line(config: Config, prepared: Prepared) -> str:
    """Returns the size of the training split, how often the run reads it, and its floors, in one line."""
    tokens, floors = len(prepared.train), prepared.floors
    size = prepared.bytes_per_token
    each = "" if size is None else f" of {size:.2f} bytes"
    epochs = config.steps * config.batch_size * config.context / tokens
    return (
        f"data={config.data.name}: {tokens:,} training tokens{each}, {epochs:.3g} epochs in {config.steps:,} steps; "
        f"floors: unigram {number(floors.unigram)}, bigram {number(floors.bigram)} nats per token"
    )


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
        **({"data": _data(summary)} if "epochs" in summary else {}),  # Runs of before don't say it.
        "speed": f"{summary['train/tokens_per_second']:,.0f} tokens/s{_use(summary)}",
        "validation loss": f"{number(first)} at init, {number(final)} at the end{_beside(summary)}",
        "training loss": f"{number(summary['train/loss'])}, mean over the last 1 % of steps",
        "max attention logit": logits,
        "attention entropy": entropy,
        "gradient RMS / eps": f"{number(summary['final'].get('adam/gradient_over_eps_min'))} at the end, lowest tensor",
        "folder": folder.path,
        "curves": f"stabilab report {folder.path}",
    }
    for name, text in rows.items():
        print(f"{name:21}{text}")


def _data(summary: dict[str, Any]) -> str:
    each = summary["bytes_per_token"]
    return f"{summary['epochs']:.3g} epochs{'' if each is None else f', {each:.2f} bytes a token'}"


def _use(summary: dict[str, Any]) -> str:
    """Returns the share of the GPUs' peak FLOPs that the model used, and the peak memory, where they are known."""
    used = f", {summary['mfu']:.1%} MFU" if "mfu" in summary else ""
    peak = summary.get("peak_memory_bytes")
    return used if peak is None else f"{used}, {peak / 2**20:,.0f} MiB at its peak"


def _beside(summary: dict[str, Any]) -> str:
    """Returns what to show beside the final loss: bigram floor, bits per byte of text, and accuracy of answers."""
    floor, bits, right = (summary.get(k) for k in ("floor/bigram", "validation/bits_per_byte", "validation/accuracy"))
    text = "" if floor is None else f" (bigram {number(floor)})"
    if summary["validation/loss_final"] is None:  # Bits and accuracy are those at initialisation then.
        return text
    text += "" if bits is None else f", {number(bits)} bits per byte"
    return text if right is None else f"{text}, {right:.1%} of answers right"
