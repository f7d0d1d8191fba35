"""Figures that several findings share: a colour for each learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.results.style import colours, lr_axis, panels, size_ticks, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def lr_shades(lrs: Sequence[float]) -> dict[float, Any]:
    """Returns a colour for each learning rate, light to dark."""
    import matplotlib

    ordered = sorted(set(lrs))
    places = np.linspace(0.85, 0.08, len(ordered)) if len(ordered) > 1 else [0.4]
    return {lr: matplotlib.colormaps["plasma"](place) for lr, place in zip(ordered, places, strict=True)}


def lr_legend(figure: Figure, shades: Mapping[float, Any], title: str = "peak learning rate") -> None:
    """Adds a legend of learning rates above the panels, on one line where they fit."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=shade, label=f"{lr:g}") for lr, shade in shades.items()]
    columns = max(2, int(figure.get_figwidth() / 0.75))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, title=title, title_fontsize=7.5, columnspacing=1.2
    )


@styled
def over_sizes_and_lrs(grid: pd.DataFrame, label: str, blocks: Mapping[tuple[int, float], Sequence[float]]) -> Figure:
    """Draws a probe at the end of runs against N, against LR and against the block, Figure 11 of Wortsman et al. 2023.

    `grid` has a row a size and a column an LR; `blocks` the values of each block of some runs, by size and LR.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure, (by_size, by_lr, by_block) = panels(3)
    sizes, lrs = [int(n) for n in grid.index], [float(lr) for lr in grid.columns]
    shades, warm = colours(sizes), lr_shades(lrs)
    for lr in lrs:
        by_size.plot(sizes, grid[lr], color=warm[lr], marker="o")
    for n in sizes:
        by_lr.plot(lrs, grid.loc[n], color=shades[n], marker="o")
    for (n, lr), values in blocks.items():
        by_block.plot(range(len(values)), values, color=shades[n], marker="o", alpha=0.35 + 0.65 * (lr == max(lrs)))
    by_size.set(xscale="log", xlabel="parameters N, without embedding and head", ylabel=label)
    size_ticks(by_size, sizes)
    lr_axis(by_lr, lrs)
    by_block.set(xlabel="block (faint: lower LRs)")
    by_block.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in (by_size, by_lr, by_block):
        panel.set_yscale("log")
    handles = [Line2D([], [], color=colour, label=f"N = {size_label(n)}") for n, colour in shades.items()]
    handles += [Line2D([], [], color=shade, label=f"LR {lr:g}") for lr, shade in warm.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=max(len(sizes), math.ceil(len(handles) / 2)))
    return figure
