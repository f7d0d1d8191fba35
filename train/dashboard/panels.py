"""Builds the panels of a dashboard by section. Panels whose metrics no run logs are left out and reported."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import wandb_workspaces.reports.v2 as wr

from train.dashboard.curves import EPS_LINE, OVER_LR, OVER_N, Curve, SweepRun
from train.loggers.detail import SHOWN, sent
from train.loggers.mirror import STEP
from train.results.style import LINES, colours
from train.results.sweep import SweepResults

MARKS = dict(zip(LINES, ("solid", "dashed", "dotted", "dotdash"), strict=True))
Panels = list[Any]
MAX_RUNS = 100
"""Maximum number of runs in a line plot."""


def logged(sweep: SweepResults) -> set[str]:
    """Returns the metric names in the W&B history of these runs, whatever their logger.detail.

    Two rows per run suffice: the validation at step -1 and step 0, which records all probes.
    """
    names: set[str] = set()
    for run in sweep.runs["run"]:
        path = sweep.metrics.folders[run].metrics_path
        if path.exists():
            with path.open(encoding="utf-8") as file:
                for line in itertools.islice(file, 2):
                    values, lists = sent(json.loads(line)) if line.endswith("\n") else ({}, {})
                    names |= values.keys() | lists.keys()
    return names | {"train/tokens_per_second"} if names else names


def shades(sizes: Sequence[int]) -> dict[int, str]:
    """Returns the colour that figures use for each size, in hex."""
    from matplotlib.colors import to_hex

    return {n: to_hex(colour) for n, colour in colours(sizes).items()}


@dataclass
class Sections:
    """Builds the panels from the metric names in the runs' history (`names`) and in their summaries (`summary`)."""

    held: SweepRun
    names: set[str]
    summary: set[str]
    left_out: list[str] = field(default_factory=list)

    def build(self) -> dict[str, Panels]:
        """Returns the panels of each section that has any."""
        sections = {
            "LR sensitivity": [] if self.held.single else self._sweep(),
            "Attention": [
                *self.line("Max attention logit, all blocks", "attention/logit_max", log_y=True),
                *self.line("Attention entropy, mean over blocks (nats)", "attention/entropy"),
                *self.line("Attention entropy, lowest head (nats)", "attention/entropy_min"),
                *self.over_lr("Max attention logit of the run against LR", "logit_max", log_y=True),
                *self.over_lr("Attention entropy at the end against LR", "entropy_final"),
                *self.line("Norm of queries, largest block", "attention/q_norm"),
                *self.line("Norm of keys, largest block", "attention/k_norm"),
                *self.line("Weight of the first key, mean", "attention/sink_mass"),
                *self.line("Sink rate, mean", "attention/sink_rate"),
            ],
            "Residual stream": [
                *self.line("RMS, largest block", "residual/rms", log_y=True),
                *self.line("Kurtosis, largest block", "residual/kurtosis", log_y=True),
                *self.line("Largest over median activation", "residual/massive_max", log_y=True),
            ],
            "Output logits": [
                *self.line("Output log Z", "output/log_z"),
                *self.line("Mean of (log Z)^2, the z-loss target", "output/log_z_squared", log_y=True),
                *self.line("Mean output logit", "output/logit_mean"),
                *self.line("Max output logit", "output/logit_max"),
            ],
            "Gradient RMS over epsilon": [
                *self.line("Gradient RMS / eps, least tensor", "adam/gradient_over_eps_min", EPS_LINE, log_y=True),
                *self._tensors("adam", "gradient_over_eps", "Gradient RMS / eps", EPS_LINE),
                *self.line("Gradient norm before clipping", "gradient/norm", log_y=True),
            ],
            "Update RMS over LR": self._tensors("update", "rms", "Update RMS / LR"),
            "Loss": [
                *self.line("Training loss (nats)", "train/loss"),
                *self.line("Validation loss (nats)", "validation/loss"),
                *self.line("Learning rate", "train/lr"),
                *self.line("Tokens a second", "train/tokens_per_second"),
            ],
        }
        return {name: panels for name, panels in sections.items() if panels}

    def _sweep(self) -> Panels:
        held = self.held
        return [
            *self.curves("LR sensitivity against N", held.sensitivity, OVER_N, title_y="LR sensitivity (nats)"),
            *self.curves("Final loss against LR", held.losses, OVER_LR, title_y="final loss (nats)"),
            *self.over_lr("Final loss against LR, each run", "validation/loss"),
            wr.MarkdownPanel(markdown=held.text, layout=wr.Layout(w=12, h=10)),
            wr.WeavePanelSummaryTable(table_name="lr_sensitivity_table", layout=wr.Layout(w=12, h=8)),
            wr.WeavePanelSummaryTable(table_name="runs_table", layout=wr.Layout(w=24, h=10)),
        ]

    def line(self, title: str, *metrics: str, **options: Any) -> Panels:
        """Returns a line plot over optimizer steps, or nothing if no run logs the first metric."""
        if metrics[0] not in self.names:
            self.left_out.append(title)
            return []
        y: list[Any] = [m for m in metrics if m != EPS_LINE or not self.held.single]
        shown = min(MAX_RUNS, len(self.held.runs) + 1)
        return [wr.LinePlot(title=title, x=STEP, y=y, title_x="step", max_runs_to_show=shown, **options)]

    def over_lr(self, title: str, metric: str, **options: Any) -> Panels:
        """Returns a scatter plot of a summary metric against LR, with a point per run."""
        if metric not in self.summary:
            self.left_out.append(title)
            return []
        lr, value = wr.Config("optimizer.lr"), wr.SummaryMetric(metric)
        return [wr.ScatterPlot(title=title, x=lr, y=value, log_x=True, **options)]

    def curves(self, title: str, curves: Sequence[Curve], x: str, **options: Any) -> Panels:
        """Returns a plot of the sweep run's curves, with line styles by arm and colours by size."""
        if not any(len(curve.points) > 1 for curve in curves):
            self.left_out.append(title)
            return []
        colour, arms, run = shades(self.sizes()), self.held.arms, self.held.id
        marks = {f"{run}:{c.name}": MARKS[LINES[arms.index(c.arm) % len(LINES)]] for c in curves}
        of_size = {f"{run}:{c.name}": colour[c.size] for c in curves if c.size is not None}
        titles = {f"{run}:{c.name}": c.name.removeprefix("sweep/").partition("/")[2] for c in curves}
        chosen: dict[str, Any] = {"line_marks": marks, "line_colors": of_size, "line_titles": titles} | options
        y: list[Any] = [curve.name for curve in curves]
        return [wr.LinePlot(title=title, x=x, y=y, log_x=True, title_x=x.removeprefix("sweep/"), **chosen)]

    def sizes(self) -> list[int]:
        return sorted({int(n) for n in self.held.runs["size"]})

    def _tensors(self, family: str, what: str, title: str, *more: str) -> Panels:
        """Returns a panel per tensor of SHOWN that is logged. Tensors inside blocks are aggregated over blocks."""
        names = {f"{t}{of}": f"{family}/{blocks}{t}/{what}" for t in SHOWN
                 for blocks, of in (("", ""), ("blocks/", " of all blocks"))}  # fmt: skip
        found = {tensor: name for tensor, name in names.items() if name in self.names}
        return [p for tensor, name in found.items() for p in self.line(f"{title}, {tensor}", name, *more, log_y=True)]
