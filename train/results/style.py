"""Defines the style of all figures: colours by size, line styles by arm, axes, guides and legends."""

from __future__ import annotations

import functools
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from train.cli.format import size_label
from train.results.floors import common_level
from train.results.verdict import jsonable
from train.runfolder.files import write_atomically
from train.runfolder.folder import STOPPED

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

R = TypeVar("R")

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    # Embeds TrueType fonts, so that text in a PDF can be selected and edited.
    "pdf.fonttype": 42,
}

PANEL = (2.35, 2.1)
"""Width and height of one panel in inches. Three panels fill the text width of a page."""

LEGEND = 0.35
"""Height in inches that a figure has above its panels."""

LINES = ("-", "--", ":", "-.")

LOGIT_LABEL = "max attention logit"

GUIDES = {1e3: "$10^3$", 1e4: "$10^4$"}
"""Logits at which loss deteriorates (1e3) and all models diverged (1e4): Wortsman et al. 2023, Figures 10 and 9."""


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function so that it draws with STYLE, independent of the caller's matplotlib settings."""

    @functools.wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapped


@styled
def save(figure: Figure, stem: Path) -> list[Path]:
    """Writes stem.png and stem.pdf reproducibly: the same figure gives the same bytes."""
    paths = [stem.with_suffix(".png"), stem.with_suffix(".pdf")]
    figure.savefig(paths[0])
    figure.savefig(paths[1], metadata={"CreationDate": None})
    return paths


def save_with_values(figure: Figure, values: Any, stem: Path) -> list[Path]:
    """Writes the figure like `save` and the values as stem.json, and returns the paths."""
    path = stem.with_suffix(".json")
    write_atomically(path, json.dumps(jsonable(values), indent=1))
    return [*save(figure, stem), path]


def colours(sizes: Sequence[int]) -> dict[int, Any]:
    """Returns a viridis colour for each size, from green (smallest) to dark violet (largest).

    The colours differ evenly in lightness, which works without colour vision. Sizes with equal labels share a colour.
    """
    import matplotlib

    ordered = sorted(set(sizes))
    labels = list(dict.fromkeys(map(size_label, ordered)))
    places = np.linspace(0.72, 0.05, len(labels)) if len(labels) > 1 else [0.35]
    shades = {label: matplotlib.colormaps["viridis"](place) for label, place in zip(labels, places, strict=True)}
    return {n: shades[size_label(n)] for n in ordered}


def panels(columns: int, rows: int = 1, width: float = PANEL[0]) -> tuple[Figure, list[Axes]]:
    """Returns a figure with rows x columns panels and their axes, row by row. `width` is that of a panel, in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, PANEL[1] * rows + LEGEND))
    return figure, list(np.ravel(figure.subplots(rows, columns, squeeze=False)))


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Adds a legend above the panels, in as many columns as fit, and makes room for what `panels` has left none for.

    Labels that are wider than the figure are wrapped.
    """
    room, wide = 0.98 * figure.bbox.width, 0.0
    labels = [str(handle.get_label()) for handle in handles]
    for columns in range(len(handles), 0, -1):
        made = figure.legend(handles, labels, loc="outside upper center", ncols=columns, columnspacing=1.2)
        if (wide := made.get_window_extent().width) <= room:
            break
        made.remove()
    else:
        most = max(8, int(0.85 * max(map(len, labels), default=0) * room / max(wide, 1.0)))
        wrapped = ["\n".join(textwrap.wrap(label, most, break_on_hyphens=False)) for label in labels]
        made = figure.legend(handles, wrapped, loc="outside upper center", ncols=1)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + max(0.0, made.get_window_extent().height / figure.dpi - LEGEND))


def legend_above(
    figure: Figure,
    sizes: Mapping[int, Any],
    lines: Mapping[str, str],
    extra: Sequence[Any] = (),
    notes: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Adds a legend above the panels: size colours with notes, line styles of the arms (if several), then `extra`."""
    from matplotlib.lines import Line2D

    by_label = {f"N = {size_label(n)}{notes.get(n, '')}": colour for n, colour in sizes.items()}
    handles = [Line2D([], [], color=colour, label=label) for label, colour in by_label.items()]
    if len(lines) > 1:
        handles += [Line2D([], [], color="0.3", ls=style, label=label) for label, style in lines.items()]
    legend(figure, [*handles, *extra])


def line_over_seeds(axes: Axes, runs: pd.DataFrame, column: str, colour: Any, style: str) -> None:
    """Draws the median over seeds against LR with a min-max band.

    Crosses mark diverged runs, hollow points those that were stopped early.
    """
    by_lr = runs.groupby("optimizer.lr")[column]
    middle = by_lr.median()
    axes.plot(
        middle.index, middle, color=colour, linestyle=style, marker="o", markeredgecolor=colour, zorder=3,
        markerfacecolor=colour if style == "-" else "white",
    )  # fmt: skip
    if runs["seed"].nunique() > 1:
        axes.fill_between(middle.index, by_lr.min(), by_lr.max(), color=colour, alpha=0.15, linewidth=0)
    broke = runs[runs["state"] == "diverged"]
    axes.plot(broke["optimizer.lr"], broke[column], "x", color=colour, markersize=6, markeredgewidth=1.4, zorder=4)
    early = runs[runs["state"] == STOPPED]
    if len(early):
        lrs = early["optimizer.lr"]
        axes.plot(lrs, early[column], "o", color=colour, markerfacecolor="white", markersize=5, zorder=4)


def arm_lines(lines: Mapping[str, str]) -> dict[str, str]:
    """Returns a line style for each arm. The first is solid."""
    return {arm: LINES[i % len(LINES)] for i, arm in enumerate(lines)}


def outcome_handles(runs: pd.DataFrame) -> list[Any]:
    """Returns entries of a legend for what line_over_seeds marks, if there are such runs."""
    from matplotlib.lines import Line2D

    cross = Line2D([], [], color="0.3", marker="x", linestyle="", markersize=6, markeredgewidth=1.4, label="diverged")
    hollow = Line2D([], [], color="0.3", marker="o", linestyle="", markersize=5, markerfacecolor="white")
    hollow.set_label("stopped (estimate)")
    found = set(runs.loc[runs["ended"], "state"])
    return [handle for state, handle in (("diverged", cross), (STOPPED, hollow)) if state in found]


def colour_handles(colours: Mapping[str, Any]) -> list[Any]:
    """Returns an entry of a legend for each colour."""
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=colour, label=label) for label, colour in colours.items()]


INIT_ALIKE = 0.2
"""Losses at initialisation that differ by at most this many nats, as those of sizes and seeds do, share a line."""


def cap_line(axes: Axes, diverged: pd.DataFrame) -> None:
    """Draws the loss at initialisation of the runs that diverged, unless they are of different data."""
    loss_init = common_level(diverged, "validation/loss_init", INIT_ALIKE)
    if loss_init is None:
        return
    axes.axhline(loss_init, color="0.45", linestyle=":", linewidth=0.9, zorder=1)
    axes.annotate(
        "loss at init", (0, loss_init), xycoords=("axes fraction", "data"), xytext=(2, -2), textcoords="offset points",
        color="0.35", fontsize=6.5, va="top",
    )  # fmt: skip


def guide_line(axes: Axes, level: float, label: str) -> None:
    """Draws a dotted horizontal line with its label at the right edge."""
    axes.axhline(level, color="0.45", linestyle=":", linewidth=0.9, zorder=1)
    axes.annotate(
        label, (1, level), xycoords=("axes fraction", "data"), xytext=(1, 0), textcoords="offset points",
        color="0.35", fontsize=6.5, va="center",
    )  # fmt: skip


def bigram_guide(axes: Axes, level: float | None, limits: tuple[float, float]) -> None:
    """Draws the bigram floor. If it is far outside the y limits of the data, a note at that edge says so instead.

    Far is more than half the height of the axes.
    """
    if level is None:
        return
    low, high = limits
    room = (high - low) / 2
    if low - room <= level <= high + room:
        guide_line(axes, level, "bigram")
        return
    below = level < low
    axes.annotate(
        f"bigram {level:.2f}, {'below' if below else 'above'}", (1, 0 if below else 1), xycoords="axes fraction",
        xytext=(-2, 2 if below else -2), textcoords="offset points", color="0.35", fontsize=6.5, ha="right",
        va="bottom" if below else "top",
    )  # fmt: skip


def logit_guides(axes: Axes) -> None:
    """Draws the published logit thresholds that are within a factor of 3 of the data."""
    top = axes.get_ylim()[1]
    for level, label in GUIDES.items():
        if level < 3 * top:
            guide_line(axes, level, label)


ARM_COLOURS = ("#21506e", "#b5542b", "#3b8f6b", "#8a4f9e", "#c99a2e", "#5aa0c8", "#d680ab", "#7a5636")

ARM_MARKERS = "os^Dv<P>"


def size_ticks(axes: Axes, sizes: Sequence[int]) -> None:
    """Puts a tick at each N of a log axis, except where labels would overlap."""
    shown: list[int] = []
    for n in sorted(sizes):
        if not shown or n > 1.15 * shown[-1]:
            shown.append(n)
    axes.set_xticks(shown, [size_label(n) for n in shown])
    axes.set_xticks([], minor=True)


def step_axis(axes: Axes) -> None:
    """Labels x as steps, from 10,000 on in thousands, with no more ticks than a narrow panel has room for."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.set(xlabel="step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if axes.get_xlim()[1] >= 1e4:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def lr_axis(axes: Axes, lrs: Iterable[float]) -> None:
    """Makes x a log axis of peak learning rates with a tick at each swept one, and labels where they don't overlap."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    axes.set(xscale="log", xlabel="peak learning rate")
    swept = sorted({float(f"{lr:.4g}") for lr in lrs})
    apart = math.log10(max(swept, default=1.0) / min(swept, default=1.0)) / 8
    labelled: list[float] = []
    for lr in swept:
        if not labelled or math.log10(lr / labelled[-1]) >= apart:
            labelled.append(lr)
    axes.xaxis.set_major_locator(FixedLocator(swept))
    axes.xaxis.set_minor_locator(NullLocator())
    labels = {lr: f"{lr:.3g}" for lr in labelled}
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: labels.get(float(f"{x:.4g}"), "")))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params("x", labelsize=7)


def plain_ticks(axes: Axes) -> None:
    """Labels a log y axis with plain numbers (0.2, 0.5, 1) if it spans less than two decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    if high / low < 100:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low > 4 else (1, 1.5, 2, 3, 4, 5, 7)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def smooth(loss: pd.Series) -> pd.Series:
    """Returns the running median over 1 % of the run. Unlike a mean, it keeps divergences sharp."""
    return loss.rolling(max(1, len(loss) // 100), center=True, min_periods=1).median()
