"""Draws a backtest: critical LRs of all recipes against N, and how far forecasts were off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from train.diagnose.card import AtSize
from train.results.style import panels, size_ticks, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from train.diagnose.backtest import Forecast, Row


@styled
def backtest_figure(
    found: Sequence[Forecast], table: Sequence[Row], at: Mapping[str, Sequence[AtSize]], right: float
) -> Figure:
    """Draws critical LRs with intervals, and forecasts by the law over what was measured; `right` is a factor."""
    import matplotlib

    figure, (measured, off) = panels(2, width=3.5)
    colours = dict(zip(at, matplotlib.colormaps["tab20"](np.linspace(0, 1, 20)[: len(at)]), strict=True))
    for recipe, ladder in at.items():
        points = [(one.n, one.critical) for one in ladder if one.critical]
        values = np.array([(n, c.value, c.low or c.value, c.high or c.value) for n, c in points]).T
        if not len(values):
            continue
        n, value, low, high = values
        spread = [value - low, high - value]
        measured.errorbar(n, value, spread, color=colours[recipe], marker="o", capsize=2, elinewidth=0.7, label=recipe)
    sizes = sorted({one.n for ladder in at.values() for one in ladder if one.critical})
    top = max(one.critical.value for ladder in at.values() for one in ladder if one.critical)
    guide = top * np.sqrt(sizes[0] / np.array(sizes))
    measured.plot(sizes, guide, color="0.6", linestyle=":", label="slope of $N^{-1/2}$")
    measured.set(xscale="log", yscale="log", xlabel="parameters N", ylabel="critical LR")
    size_ticks(measured, [int(n) for n in sizes])
    places = {row.factor: i for i, row in enumerate(table)}
    for i, one in enumerate(found):
        place = min(places, key=lambda factor: abs(np.log(factor / one.factor)))
        x = places[place] + 0.5 * (i / len(found) - 0.5)
        off.plot(x, np.exp(one.law - one.measured), "o", color=colours[one.recipe], markersize=3)
    off.axhspan(1 / right, right, color="0.9", linewidth=0, zorder=0)
    said = [f"{row.factor}x\n{row.right['law']:.0%} ({row.right['N^-1/2']:.0%})" for row in table]
    off.set_xticks(list(places.values()), said)
    off.set(
        yscale="log",
        xlabel=f"factor in N; share within {right:g}x by the law (by N^-1/2)",
        ylabel="forecast / measured",
    )
    figure.legend(*measured.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure
