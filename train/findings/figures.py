"""The figures of findings, chosen by a claim's `figure` key: each kind draws the arms of any claim."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from train.cli.format import size_label
from train.findings.arm_figures import (
    arm_colours,
    arms_and_sizes_legend,
    arms_by_size,
    arms_legend,
    by_arm_and_size,
    floor_lines,
    optimum_handles,
    optimum_marks,
)
from train.findings.arms import Arms, at_lrs
from train.findings.lr_figures import lr_legend, lr_shades, over_sizes_and_lrs
from train.findings.phase_figures import phase_diagram
from train.findings.probes import at_end, series
from train.findings.quantities import Metric, Of, quantity, records, values
from train.results.figures import against_size, arms_against_lr, arms_in_time, loss_against_lr, sensitivity_against_size
from train.results.sensitivity import DEGRADED
from train.results.style import (
    colours,
    line_over_seeds,
    lr_axis,
    outcome_handles,
    panels,
    plain_ticks,
    step_axis,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal[
    "losses", "logits", "optima", "quantities", "sizes_and_lrs", "time", "along", "lengths", "separation", "by_arm",
    "phases",
]  # fmt: skip


class FigureSpec(BaseModel):
    """What a claim's figure shows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    of: list[Of] = []
    """Quantities, or metrics, by panel."""
    over: str | None = None
    """The config value along which `along` draws, and that of the vertical axis of `phases`."""
    by: str = ""
    """The config value for which `phases` has a panel each."""
    arm: str | None = None
    """The arm that `sizes_and_lrs`, `separation` and `time` draw: in `time`, a line for each of its LRs."""


Drawn = dict[str, "Figure"]


def draw(spec: FigureSpec, sweep: Arms, checks: Iterable[Any], title: str = "") -> Drawn:
    """Returns figures by file name, with the verdict in the title. None of what no ended run has."""
    if not sweep.runs["ended"].any():
        return {}
    figures = DRAW[spec.kind](spec, sweep)
    for figure in figures.values():
        if title:
            _title(figure, title)
    return figures


def _title(figure: Figure, title: str) -> None:
    """Writes the title above the panels, in up to five lines."""
    width, height = figure.get_size_inches()
    lines = [line for part in title.split(". ", 1) for line in textwrap.wrap(part, int(13 * width))]
    lines = (
        [*lines[:4], textwrap.shorten(" ".join(lines[4:]), int(13 * width), placeholder=" ...")] if lines[4:] else lines
    )
    figure.set_size_inches(width, height + 0.15 * len(lines))
    if not figure.legends:
        figure.suptitle("\n".join(lines), fontsize=8, fontweight="bold")
        return
    # A title of the figure would lie over a legend that is outside the panels.
    legend = figure.legends[0]
    legend.set_title("\n".join(filter(None, [*lines, legend.get_title().get_text()])))
    legend.get_title().set(fontsize=8, fontweight="bold")


def _losses(_: FigureSpec, sweep: Arms) -> Drawn:
    return {"loss_against_lr": arms_by_size(sweep)}


def _in_order(sweep: Arms) -> pd.DataFrame:
    """Returns the ended runs, arm by arm."""
    order = {arm: i for i, arm in enumerate(sweep.names)}
    ended = sweep.runs[sweep.runs["ended"]]
    return ended.sort_values("arm", key=lambda arm: arm.map(order), kind="stable")


def _logits(spec: FigureSpec, sweep: Arms) -> Drawn:
    """Draws Figure 1 of Wortsman et al. 2023: loss, logits and entropy against LR, LR sensitivity against N."""
    lines = {arm: arm for arm in sweep.names}
    figures = {"loss_and_logits_against_lr": arms_against_lr(_in_order(sweep), lines, optimum_handles(sweep))}
    shades = colours(sweep.sizes())
    for (n, _), curve in sweep.curves.items():
        optimum_marks(figures["loss_and_logits_against_lr"].axes[0], curve, shades[n])
    if len(sweep.sizes()) > 1 and sweep.curves:
        figures["lr_sensitivity_against_size"] = sensitivity_against_size(sweep.curves, lines)
    rows = _in_two_sizes(sweep)
    if rows:
        lrs = {n: lr for (n, _), (lr, _) in rows.items()}
        figures["loss_and_logits_in_time"] = arms_in_time({key: frame for key, (_, frame) in rows.items()}, lrs, lines)
    return figures | _losses(spec, sweep)


def _in_two_sizes(sweep: Arms) -> dict[tuple[int, str], tuple[float, pd.DataFrame]]:
    """Returns what Figure 2 shows: the arms at the smallest and the largest size, at the first LR at which the first
    arm's logits pass 1000 (else at the largest): LR and metrics by size and arm."""
    found: dict[tuple[int, str], tuple[float, pd.DataFrame]] = {}
    for n in (sweep.sizes()[0], sweep.sizes()[-1]):
        rows = sweep.runs[sweep.runs["ended"] & (sweep.runs["size"] == n)].sort_values("optimizer.lr")
        first = rows[rows["arm"] == sweep.names[0]]
        large = first[first["logit_max"] > 1e3]
        if len(first):
            lr = float((large if len(large) else first.tail(1))["optimizer.lr"].iloc[0])
            shown = rows[(rows["optimizer.lr"] == lr) & (rows["seed"] == rows["seed"].min())]
            found |= {(n, row["arm"]): (lr, sweep.metrics[row["run"]]) for row in shown.to_dict("records")}
    return {key: (lr, frame) for key, (lr, frame) in found.items() if not frame.empty}


def _optima(_: FigureSpec, sweep: Arms) -> Drawn:
    """Draws loss against LR for each arm; optimal LR, best loss and LR sensitivity against N.

    Optima at an edge of the grid are bounds, and not drawn. Sensitivities are over the LRs of the first arm; curves
    that lack some of these have none here.
    """
    alike = _on_first_grid(sweep)
    shown: dict[str, dict[str, dict[int, tuple[float, float | None]]]] = {}
    for label, of, arms in (("optimal LR", "optimal_lr", sweep), ("best loss (nats)", "best_loss", sweep),
                            ("LR sensitivity (nats)", "lr_sensitivity", alike)):  # fmt: skip
        shown[label] = {arm: found for arm in sweep.names if (found := _over_n(arms, arm, of))}
    shown = {label: arms for label, arms in shown.items() if arms}
    figures = {"loss_against_lr": loss_against_lr(_in_order(sweep))}
    return figures | ({"optima_against_size": against_size(shown, linear=["best loss (nats)"])} if shown else {})


def _on_first_grid(sweep: Arms) -> Arms:
    """Returns the curves that have all LRs which the curves of the first arm share, over these LRs."""
    lrs = [set(curve.first.lrs) for (_, arm), curve in sweep.curves.items() if arm == sweep.names[0]]
    shared = set.intersection(*lrs) if lrs else set[float]()
    curves = {
        at: at_lrs(curve, shared) for at, curve in sweep.curves.items() if shared and shared <= {*curve.first.lrs}
    }
    return replace(sweep, curves=curves)


def _over_n(sweep: Arms, arm: str, of: str) -> dict[int, tuple[float, float | None]]:
    """Returns mean and standard deviation over seeds of a curve's number, by N, where it lies inside the grid for all
    seeds."""
    found = {}
    for n, group in values(sweep, arm, of).groupby("size"):
        if group["edge"].any():
            continue
        mean, std = float(group["value"].mean()), float(group["value"].std()) if len(group) > 1 else None
        if quantity(of).log:
            mean, std = math.exp(mean), std and math.exp(mean) * std
        if mean > 0:
            found[int(n)] = (mean, std)
    return found


@styled
def _quantities_figure(spec: FigureSpec, sweep: Arms) -> Figure:
    figure, axes = panels(1 + len(spec.of))
    kept = {arm: pd_values(sweep, arm, spec.of) for arm in sweep.names}
    for (arm, n), (runs, colour, style) in zip(
        ((arm, n) for arm in sweep.names for n in sweep.sizes()), by_arm_and_size(sweep), strict=True
    ):
        if not len(runs):
            continue
        line_over_seeds(axes[0], runs, "validation/loss", colour, style)
        for panel, found in zip(axes[1:], kept[arm], strict=True):
            at = {(lr, seed): v for size, lr, seed, v in found if size == n}
            keys = zip(runs["optimizer.lr"], runs["seed"], strict=True)
            shown = runs.assign(value=[at.get((lr, seed), math.nan) for lr, seed in keys]).dropna(subset=["value"])
            if len(shown):
                line_over_seeds(panel, shown, "value", colour, style)
    for panel in axes:
        lr_axis(panel, sweep.runs["optimizer.lr"])
    for panel, of in zip(axes[1:], spec.of, strict=True):
        panel.set_ylabel(quantity(of).label)
        if quantity(of).log and panel.has_data():
            panel.set_yscale("log")
            plain_ticks(panel)
    axes[0].set_ylabel("final validation loss (nats)")
    floor_lines(axes[0], sweep)
    arms_and_sizes_legend(figure, sweep, outcome_handles(sweep.runs))
    return figure


def pd_values(sweep: Arms, arm: str, of: Sequence[Of]) -> list[list[tuple[int, float, int, float]]]:
    """Returns for each quantity of a run its values by size, LR and seed, not in logarithms."""
    found = []
    for one in of:
        table = values(sweep, arm, one)
        shown = np.exp(table["value"].astype(float)) if quantity(one).log else table["value"]
        found.append(list(zip(table["size"], table["lr"], table["seed"], shown, strict=True)))
    return found


def _sizes_and_lrs(spec: FigureSpec, sweep: Arms) -> Drawn:
    """Draws Figure 11 of Wortsman et al. 2023: metrics of an arm over N, LR and block."""
    import pandas as pd

    arm, figures = spec.arm or sweep.names[0], {}
    for of in spec.of:
        name = of.metric if isinstance(of, Metric) else of
        table = values(sweep, arm, of)
        grid = np.exp(table.pivot_table(index="size", columns="lr", values="value"))
        if isinstance(of, Metric) and grid.size:
            per_block = re.sub(r"block\d+", "block{}", name)
            stem = re.sub(r"\W+", "_", name)
            figures[stem] = over_sizes_and_lrs(pd.DataFrame(grid), name, _of_blocks(sweep, arm, per_block))
    return figures


def _of_blocks(sweep: Arms, arm: str, column: str) -> dict[tuple[int, float], list[float]]:
    """Returns a metric at the end of runs, block by block, at the lowest, middle and highest LR of each size."""
    found = {}
    for n in sweep.sizes(arm):
        rows = sweep.ended(arm, n)
        rows = rows[rows["seed"] == rows["seed"].min()].sort_values("optimizer.lr")
        for i in sorted({0, len(rows) // 2, len(rows) - 1}) if len(rows) else ():
            blocks = [at_end(sweep.metrics[rows["run"].iloc[i]], column.format(b)) for b in range(100)]
            found[n, float(rows["optimizer.lr"].iloc[i])] = [v for v in blocks if np.isfinite(v)]
    return found


@styled
def _time_figure(spec: FigureSpec, sweep: Arms) -> Figure:
    """Draws metrics against step at the largest size: a line for each LR of one arm, or all arms at the highest LR."""
    largest = max(sweep.sizes())
    runs = sweep.runs[sweep.runs["ended"] & (sweep.runs["size"] == largest)]
    shades: dict[Any, Any]
    if spec.arm:
        runs = runs[runs["arm"] == spec.arm]
        runs = runs[runs["seed"] == runs["seed"].min()]
        shades, key = dict(lr_shades(runs["optimizer.lr"].tolist() or [1.0])), "optimizer.lr"
    else:
        runs = runs[runs["optimizer.lr"] == runs["optimizer.lr"].max()]
        shades, key = dict(arm_colours(sweep)), "arm"
    figure, axes = panels(len(spec.of), width=2.4)
    for panel, of in zip(axes, spec.of, strict=True):
        name = of.metric if isinstance(of, Metric) else of
        for row in runs.sort_values("optimizer.lr").to_dict("records"):
            found = series(sweep.metrics[row["run"]], name)
            smooth = found.rolling(max(1, len(found) // 50), center=True, min_periods=1).median()
            panel.plot(smooth.index, smooth, color=shades[row[key]], linewidth=0.9)
        panel.set(ylabel=name)
        step_axis(panel)
        if isinstance(of, Metric) and of.log and panel.has_data():
            panel.set_yscale("log")
            plain_ticks(panel)
    if spec.arm:
        lr_legend(figure, shades, f"{spec.arm}, N = {size_label(largest)}; peak learning rate")
    else:
        arms_legend(figure, shades)
    return figure


@styled
def _along_figure(spec: FigureSpec, sweep: Arms) -> Figure:
    """Draws quantities along a config value that tells arms apart, a line for each size; other arms as dashed lines."""
    figure, axes = panels(len(spec.of), width=2.9)
    column = spec.over or ""
    place = {arm: sweep.runs.loc[sweep.runs["arm"] == arm, column].astype(float).iloc[0] for arm in sweep.names}
    for panel, of in zip(axes, spec.of, strict=True):
        logs = quantity(of).log
        lines: dict[int, dict[float, float]] = {}
        for arm in sweep.names:
            for n, group in values(sweep, arm, of).groupby("size"):
                middle = float(group["value"].median())
                middle = math.exp(middle) if logs else middle
                if math.isfinite(place[arm]):
                    lines.setdefault(int(n), {})[place[arm]] = middle
                else:
                    panel.axhline(middle, color="#b5542b", linestyle="--", linewidth=1, label=arm)
        for n, points in lines.items():
            panel.plot(list(points), list(points.values()), marker="o", label=f"N = {size_label(n)}")
        panel.set(xscale="log", xlabel=column, ylabel=quantity(of).label, yscale="log" if logs else "linear")
        panel.legend()
    return figure


@styled
def _lengths_figure(spec: FigureSpec, sweep: Arms) -> Figure:
    """Draws validation metrics against the length of sequences over that of training: medians over runs."""
    figure, axes = panels(len(spec.of), width=3.2)
    for panel, of in zip(axes, spec.of, strict=True):
        pattern = of.metric if isinstance(of, Metric) else of
        for runs, colour, style in by_arm_and_size(sweep):
            frames = [sweep.metrics[run] for run in runs["run"]]
            _length_line(panel, frames, pattern, colour, style)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        panel.set(xlabel="length / length of training", ylabel=pattern.replace("*", "n"))
    arms_and_sizes_legend(figure, sweep)
    return figure


def _length_line(panel: Axes, frames: Sequence[pd.DataFrame], pattern: str, colour: Any, style: str) -> None:
    places = re.compile(re.escape(pattern).replace(r"\*", r"(\d+)"))
    at: dict[int, list[float]] = {}
    for frame in frames:
        for column in frame:
            if (match := places.fullmatch(str(column))) and frame[column].notna().any():
                at.setdefault(int(match[1]), []).append(float(frame[column].dropna().iloc[-1]))
    shown = {m: float(np.median(at[m])) for m in sorted(at)}
    panel.plot(list(shown), list(shown.values()), color=colour, linestyle=style, marker="o")


@styled
def _separation_figure(spec: FigureSpec, sweep: Arms) -> Figure:
    """Draws quantities of an arm's runs against how far they end above the best loss; dotted: where a run is broken."""
    figure, axes = panels(len(spec.of))
    rows = records(sweep, spec.arm or sweep.names[0])
    for panel, of in zip(axes, spec.of, strict=True):
        found = quantity(of)
        for row in rows:
            value = found.of_run(row, sweep) if found.of_run else math.nan
            value = math.exp(value) if found.log and value < 700 else value
            above = row["validation/loss"] - row.get("best_loss", math.nan)
            if math.isfinite(value) and math.isfinite(above):
                panel.plot(value, above, "o", color="#b5542b" if row["broken"] else "#21506e")
        panel.axhline(DEGRADED, color="0.45", linestyle=":", linewidth=0.9)
        panel.set(xlabel=found.label, ylabel="loss above the best LR's (nats)")
        if found.log:
            panel.set_xscale("log")
    return figure


@styled
def _by_arm_figure(spec: FigureSpec, sweep: Arms) -> Figure:
    """Draws quantities of runs arm by arm, a point for each run and a line at their median; for sweeps of one LR."""
    figure, axes = panels(len(spec.of), width=2.4)
    for panel, of in zip(axes, spec.of, strict=True):
        for i, (arm, colour) in enumerate(arm_colours(sweep).items()):
            found = [value for *_, value in pd_values(sweep, arm, [of])[0]]
            panel.plot([i] * len(found), found, "o", color=colour)
            if found:
                panel.plot([i - 0.3, i + 0.3], [float(np.median(found))] * 2, color=colour)
        panel.set_xticks(range(len(sweep.names)), sweep.names, rotation=40, ha="right", rotation_mode="anchor")
        panel.set_ylabel(quantity(of).label)
        if quantity(of).log and panel.has_data():
            panel.set_yscale("log")
            plain_ticks(panel)
    return figure


DRAW: Mapping[Kind, Callable[[FigureSpec, Arms], Drawn]] = {
    "losses": _losses,
    "logits": _logits,
    "optima": _optima,
    "quantities": lambda spec, sweep: {"quantities_against_lr": _quantities_figure(spec, sweep)},
    "sizes_and_lrs": _sizes_and_lrs,
    "time": lambda spec, sweep: {"metrics_in_time": _time_figure(spec, sweep)} | _losses(spec, sweep),
    "along": lambda spec, sweep: {"along_value": _along_figure(spec, sweep)} | _losses(spec, sweep),
    "lengths": lambda spec, sweep: {"against_length": _lengths_figure(spec, sweep)},
    "separation": lambda spec, sweep: {"separation": _separation_figure(spec, sweep)},
    "by_arm": lambda spec, sweep: {"quantities_by_arm": _by_arm_figure(spec, sweep)},
    "phases": lambda spec, sweep: {"phase_diagram": phase_diagram(sweep, spec.over or "", spec.by)},
}
