"""Figures of arms, a colour each: loss against LR at every size, and LR sensitivity against N."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.findings.arms import Arms
from train.findings.fitness import floors
from train.findings.quantities import optimal_lr
from train.results.sensitivity import DEGRADED, OverSeeds
from train.results.style import (
    ARM_COLOURS,
    ARM_MARKERS,
    LINES,
    cap_line,
    legend,
    line_over_seeds,
    lr_axis,
    outcome_handles,
    panels,
    plain_ticks,
    size_ticks,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SHORT = 16
"""Most characters of the names of arms that fit under a panel."""


def arm_colours(sweep: Arms) -> dict[str, Any]:
    return {arm: ARM_COLOURS[i % len(ARM_COLOURS)] for i, arm in enumerate(sweep.names)}


def arms_legend(figure: Figure, colours: dict[str, Any], extra: Sequence[Any] = ()) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, label=arm) for arm, colour in colours.items()]
    legend(figure, [*handles, *extra])


def size_lines(sweep: Arms) -> dict[int, str]:
    """Returns a line style for each size, solid for the largest."""
    return {n: LINES[i % len(LINES)] for i, n in enumerate(reversed(sweep.sizes()))}


def by_arm_and_size(sweep: Arms) -> Iterator[tuple[pd.DataFrame, Any, str]]:
    """Yields the ended runs of each arm at each size, with the arm's colour and the size's line style."""
    styles = size_lines(sweep)
    for arm, colour in arm_colours(sweep).items():
        for n in sweep.sizes():
            yield sweep.ended(arm, n), colour, styles[n]


def arms_and_sizes_legend(figure: Figure, sweep: Arms, extra: Sequence[Any] = ()) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, label=arm) for arm, colour in arm_colours(sweep).items()]
    handles += [
        Line2D([], [], color="0.3", ls=style, label=f"N = {size_label(n)}") for n, style in size_lines(sweep).items()
    ]
    legend(figure, [*handles, *extra])


def loss_panel(axes: Axes, sweep: Arms, n: int) -> None:
    """Draws the final loss against LR at one size: median over seeds, with a band from the smallest to the largest."""
    for arm, colour in arm_colours(sweep).items():
        if len(runs := sweep.ended(arm, n)):
            line_over_seeds(axes, runs, "validation/loss", colour, "-")
        if (curve := sweep.curves.get((n, arm))) is not None and len(curve.first.lrs) > 2:
            optimum_marks(axes, curve, colour)
    lr_axis(axes, sweep.runs["optimizer.lr"])
    axes.set_title(f"N = {size_label(n)}")
    broke = sweep.runs[sweep.runs["ended"] & (sweep.runs["state"] == "diverged")]
    cap_line(axes, broke)


def optimum_marks(axes: Axes, curve: OverSeeds, colour: Any) -> None:
    """Draws a star at the optimal LR and a triangle at the critical one, if there are any: medians over seeds."""
    seeds = curve.by_seed.values()
    logs = [log for log in map(optimal_lr, seeds) if math.isfinite(log)]
    best = float(np.median([one.best_loss for one in seeds]))
    if logs:
        axes.plot(math.exp(float(np.median(logs))), best, "*", color=colour, markersize=7, zorder=5)
    if (critical := curve.median("critical_lr")) is not None:
        axes.plot(critical, best + DEGRADED, "v", color=colour, markersize=5, markeredgecolor="white", zorder=5)


def optimum_handles(sweep: Arms) -> list[Any]:
    """Returns what the marks mean, for a legend, as far as there are any."""
    from matplotlib.lines import Line2D

    curves = [curve for curve in sweep.curves.values() if len(curve.first.lrs) > 2]
    marks = [("*", "best LR")] if curves else []
    marks += [("v", "critical LR")] if any(curve.median("critical_lr") is not None for curve in curves) else []
    return [Line2D([], [], color="0.3", marker=m, linestyle="", markersize=6, label=label) for m, label in marks]


def floor_lines(axes: Axes, sweep: Arms) -> None:
    """Draws lines at the floors that lie within the panel, with their names; floors of one level share a line."""
    low, high = axes.get_ylim()
    names: dict[float, list[str]] = {}
    for name, level in floors(sweep).items():
        names.setdefault(round(level, 3), []).append(name.partition("/")[2].replace("_", " "))
    for level, same in names.items():
        if low < level < high:
            axes.axhline(level, color="0.45", linestyle="--", linewidth=0.8, zorder=1)
            axes.annotate(
                ", ".join(same), (0, level), xycoords=("axes fraction", "data"), xytext=(2, -1.5),
                textcoords="offset points", color="0.35", fontsize=6.5, va="top",
            )  # fmt: skip


def sensitivity_panel(axes: Axes, sweep: Arms) -> None:
    """Draws LR sensitivity against N, or arm by arm at a single size: mean and standard deviation over seeds."""
    several = len(sweep.sizes()) > 1
    for i, ((arm, colour), marker) in enumerate(zip(arm_colours(sweep).items(), cycle(ARM_MARKERS))):
        found = [(n if several else i, curve) for (n, of), curve in sweep.curves.items() if of == arm]
        if found:
            axes.errorbar(
                [x for x, _ in found], [c.mean for _, c in found], yerr=[c.std or 0 for _, c in found], color=colour,
                marker=marker, capsize=2, elinewidth=0.8,
            )  # fmt: skip
    axes.set(ylabel="LR sensitivity (nats)")
    if any(curve.mean > 0 for curve in sweep.curves.values()):
        axes.set_yscale("log")
        plain_ticks(axes)
    if several:
        axes.set(xscale="log", xlabel="parameters N")
        size_ticks(axes, sweep.sizes())
    else:
        if max(map(len, sweep.names)) <= SHORT:
            axes.set_xticks(range(len(sweep.names)), sweep.names, rotation=30, ha="right", rotation_mode="anchor")
        else:
            axes.set_xticks([])
            axes.set_xlabel("arms, as in the legend")
    axes.margins(x=0.15, y=0.2)


@styled
def arms_by_size(sweep: Arms) -> Figure:
    """Draws a panel for each size, and one of the LR sensitivities where there are several LRs."""
    sizes = sweep.sizes()
    several = any(len(one.lrs) > 1 for curve in sweep.curves.values() for one in curve.by_seed.values())
    count = len(sizes) + several
    columns = min(3, count)
    figure, axes = panels(columns, rows=-(-count // columns))
    for i, (panel, n) in enumerate(zip(axes, sizes, strict=False)):
        loss_panel(panel, sweep, n)
        panel.set_ylabel("final validation loss (nats)" if i % columns == 0 else "")
    limits = np.array([panel.get_ylim() for panel in axes[: len(sizes)]])
    for panel in axes[: len(sizes)]:
        panel.set_ylim(limits[:, 0].min(), limits[:, 1].max())
        floor_lines(panel, sweep)
    if several:
        sensitivity_panel(axes[len(sizes)], sweep)
    for panel in axes[count:]:
        panel.remove()
    arms_legend(figure, arm_colours(sweep), [*optimum_handles(sweep), *outcome_handles(sweep.runs)])
    return figure
