"""Draws the figure of a stability card: loss against LR, and the critical and optimal LR against N."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from train.diagnose.card import Card, Interval
from train.diagnose.laws import ends
from train.results.style import LINES, colours, legend_above, lr_axis, panels, size_ticks, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CRITICAL, OPTIMAL = "#b3261e", "#21506e"


@styled
def card_figure(cards: Sequence[Card]) -> Figure:
    """Draws all recipes, each with its line style. Hollow points are estimates of runs that were stopped early."""
    styles = [LINES[i % len(LINES)] for i in range(len(cards))]
    figure, (loss, rates) = panels(2, width=3.4)
    sizes = [int(s.n) for card in cards for s in card.sizes if s.curves and s.n == s.n]
    shades = colours(sizes) if sizes else {}
    for card, style in zip(cards, styles, strict=True):
        for at in card.sizes:
            for one in at.curves if at.n == at.n else ():
                colour = shades[int(at.n)]
                loss.plot(one.lrs, one.losses, color=colour, linestyle=style, linewidth=1)
                for lr, value, early in zip(one.lrs, one.losses, one.stopped, strict=True):
                    face = "white" if early else colour
                    loss.plot(lr, value, "o", color=colour, markerfacecolor=face, markersize=3)
    lr_axis(loss, {lr for card in cards for at in card.sizes for one in at.curves for lr in one.lrs})
    loss.set_ylabel("final validation loss (nats)")
    for card, style in zip(cards, styles, strict=True):
        _rates(rates, card, style)
    targets = [int(c.forecast.n) for c in cards if c.forecast]
    rates.set(xscale="log", yscale="log", xlabel="parameters N", ylabel="learning rate")
    size_ticks(rates, [*sizes, *targets])
    rates.margins(0.06)
    legend_above(
        figure,
        shades,
        dict(zip([card.recipe for card in cards], styles, strict=True)),
        _handles(any(map(_has_rule, cards))),
    )
    return figure


def _rates(axes: Axes, card: Card, style: str) -> None:
    """Draws measured critical and optimal LRs with intervals, their laws, the forecast at the target, and the rule."""
    for name, colour, marker in (("critical", CRITICAL, "o"), ("optimal", OPTIMAL, "s")):
        for at in card.sizes:
            _bar(axes, at.n, getattr(at, name), colour, marker, filled=True)
        if card.forecast is None:
            continue
        _bar(axes, card.forecast.n, getattr(card.forecast, name), colour, marker, filled=False)
        if getattr(card.forecast, name) is not None and name in card.laws:
            one = card.laws[name]
            ns = np.geomspace(min(np.exp(one.x)), max(card.forecast.n, *np.exp(one.x)), 60)
            found = [one.at(float(n)) for n in ns]
            axes.plot(ns, np.exp([f.value for f in found]), color=colour, linestyle=style, linewidth=1)
            if all(band := [ends(f) for f in found]):
                low, high = zip(*[b for b in band if b], strict=True)
                axes.fill_between(ns, low, high, color=colour, alpha=0.12, linewidth=0)
    ahead = card.forecast
    if _has_rule(card) and ahead is not None and ahead.rule is not None and ahead.rule_from is not None:
        start = ahead.rule * (ahead.n / ahead.rule_from) ** ahead.fall
        axes.plot([ahead.rule_from, ahead.n], [start, ahead.rule], color=CRITICAL, linestyle=":", linewidth=1)


def _has_rule(card: Card) -> bool:
    return card.forecast is not None and card.forecast.rule is not None and card.forecast.factor > 1


def _bar(axes: Axes, n: float, found: Interval | None, colour: str, marker: str, filled: bool) -> None:
    if found is None or n != n:
        return
    spread: Any = None
    if found.low is not None and found.high is not None:
        spread = [[found.value - found.low], [found.high - found.value]]
    axes.errorbar(
        [n], [found.value], yerr=spread, color=colour, marker=marker, capsize=2, elinewidth=0.8,
        markerfacecolor=colour if filled else "white",
    )  # fmt: skip


def _handles(rule: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    measured = [
        Line2D([], [], color=colour, marker=marker, label=f"{name} LR", linestyle="")
        for name, colour, marker in (("critical", CRITICAL, "o"), ("optimal", OPTIMAL, "s"))
    ]
    return [*measured, *([Line2D([], [], color=CRITICAL, linestyle=":", label="by rule")] if rule else [])]
