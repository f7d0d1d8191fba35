"""Draws metrics against N, measured, fitted and extrapolated, as in Figure 9 of Wortsman et al. 2023."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.forecast.backtest import COVERED, Trial
from train.forecast.measurements import Quantity
from train.forecast.predict import LEVEL, Prediction
from train.results.style import colours, guide_line, panels, styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def forecast_figure(found: Sequence[Prediction], runs: pd.DataFrame, breaking: float | None) -> Figure:
    """Draws one panel per quantity with one line per learning rate and a forecast band of probability LEVEL.

    `runs` are all runs with readings. Those that the forecast did not use are hollow. `breaking` is the logit level
    that separated broken runs from trained ones.
    """
    from matplotlib.lines import Line2D

    figure, axes = panels(len(found), width=3.4)
    lrs = sorted({row.lr for prediction in found for row in prediction.rows})
    shades = by_lr(lrs)
    for ax, prediction in zip(axes, found, strict=True):
        for row in prediction.rows:
            _line(ax, prediction, runs, row.lr, shades[row.lr])
        ax.set(xscale="log", yscale="log", xlabel="parameters N, without embedding and head")
        ax.set_ylabel(f"{prediction.quantity.label},\n{prediction.quantity.when}")
        ax.axvline(prediction.target, color="0.45", linewidth=0.8, linestyle="--", zorder=1)
        ax.annotate(
            f"target {size_label(prediction.target)}", (prediction.target, 1), xycoords=("data", "axes fraction"),
            xytext=(2, 1), textcoords="offset points", color="0.35", fontsize=6.5, va="bottom", ha="center",
        )  # fmt: skip
        levels = {level: f"{level:g}" for level in prediction.quantity.levels}
        if breaking and prediction.quantity.rises:
            # Its label would lie on that of a level close by.
            levels = {level: text for level, text in levels.items() if not 0.4 < level / breaking < 2.5}
            levels[breaking] = "broke"
        _levels(ax, levels)
    handles = [Line2D([], [], color=shades[lr], label=f"LR {lr:.3g}") for lr in lrs]
    look: dict[str, Any] = {"color": "0.3", "linestyle": "", "marker": "o"}
    handles += [Line2D([], [], label="used", **look), Line2D([], [], label="not used", markerfacecolor="white", **look)]
    if runs["broken"].any():
        handles.append(Line2D([], [], color="0.3", linestyle="", marker="x", markersize=6, label="broke"))
    figure.legend(handles=handles, loc="outside upper center", ncols=3 * len(found), columnspacing=1.2)
    return figure


def by_lr(lrs: Sequence[float]) -> dict[float, Any]:
    """Returns a colour for each learning rate. Larger ones are darker."""
    shades = colours(range(len(lrs)))
    return {lr: shades[i] for i, lr in enumerate(lrs)}


def _line(ax: Axes, prediction: Prediction, runs: pd.DataFrame, lr: float, colour: Any) -> None:
    name, largest = prediction.quantity.name, 10 ** prediction.seen.sizes[-1]
    own = runs[np.isclose(runs["optimizer.lr"], lr, rtol=1e-6)]
    used = own["size"] <= 1.0001 * largest
    ax.plot(own["size"][used], own[name][used], "o", color=colour, zorder=4)
    ax.plot(own["size"][~used], own[name][~used], "o", color=colour, markerfacecolor="white", zorder=4)
    broke = own[own["broken"]]
    ax.plot(broke["size"], broke[name], "x", color=colour, markersize=7, zorder=3)
    end = max(prediction.target, float(own["size"].max()))
    grid = np.linspace(prediction.seen.sizes[0], math.log10(end) + 0.1, 120)
    key = min(set(prediction.seen.lr.tolist()), key=lambda x: abs(x - math.log10(lr)))
    forecasts = [f for n in grid if (f := prediction.model.at(float(n), key)) is not None]
    mean = np.array([f.mean for f in forecasts])
    low, high = np.array([f.interval(LEVEL) for f in forecasts]).T
    seen = grid <= prediction.seen.sizes[-1]
    ax.plot(10 ** grid[seen], 10 ** mean[seen], color=colour)
    ax.plot(10 ** grid[~seen], 10 ** mean[~seen], color=colour, linestyle=(0, (4, 2)))
    ax.fill_between(10 ** grid[~seen], 10 ** low[~seen], 10 ** high[~seen], color=colour, alpha=0.12, linewidth=0)


def _levels(ax: Axes, levels: Mapping[float, str]) -> None:
    """Draws the levels within a factor of 10 of the panel's range. Others would squash the data."""
    low, high = ax.get_ylim()
    for level, label in levels.items():
        if low / 10 < level < 10 * high:
            guide_line(ax, level, label)


@styled
def backtest_figure(found: Mapping[str, tuple[Quantity, Sequence[Trial]]]) -> Figure:
    """Draws forecast against measured value for every trial, coloured by the factor of extrapolation in N."""
    import matplotlib
    from matplotlib.colors import LogNorm

    figure, axes = panels(len(found), width=3.2)
    factors = [trial.factor for _, trials in found.values() for trial in trials]
    norm, shades = LogNorm(min(factors) / 2, max(factors)), matplotlib.colormaps["viridis_r"]
    for ax, (quantity, trials) in zip(axes, found.values(), strict=True):
        for trial in trials:
            low, high = trial.spans[COVERED[-1]]
            colour = shades(norm(trial.factor))
            ax.plot([10**trial.measured] * 2, [10**low, 10**high], color=colour, linewidth=0.5, alpha=0.35)
            ax.plot(10**trial.measured, 10**trial.forecast, "o", color=colour, markersize=2.5)
        values = [10**v for trial in trials for v in (trial.measured, trial.forecast)]
        ends = (min(values) / 2, 2 * max(values))
        ax.plot(ends, ends, color="0.45", linestyle=":", linewidth=0.9, zorder=1)
        ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel=f"measured {quantity.label}", ylabel="forecast")
    bar = figure.colorbar(matplotlib.cm.ScalarMappable(norm, shades), ax=list(axes), shrink=0.9, pad=0.02)
    bar.set_ticks([x for x in (1, 2, 4, 8, 16, 32, 64, 128) if min(factors) <= x <= max(factors)], minor=False)
    bar.ax.minorticks_off()
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.set_label("N over largest N seen")
    return figure
