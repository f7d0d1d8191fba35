"""Draws the figures of a sweep. Colour encodes model size (darker is larger) and line style encodes the arm.

matplotlib is imported inside the functions so that importing this module is cheap. No function opens a window.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.results.floors import common_floor
from train.results.sensitivity import OverSeeds
from train.results.style import (
    ARM_COLOURS,
    ARM_MARKERS,
    LINES,
    LOGIT_LABEL,
    PANEL,
    arm_lines,
    bigram_guide,
    cap_line,
    colour_handles,
    colours,
    legend,
    legend_above,
    line_over_seeds,
    logit_guides,
    lr_axis,
    outcome_handles,
    panels,
    plain_ticks,
    size_ticks,
    smooth,
    step_axis,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@styled
def arms_against_lr(runs: pd.DataFrame, lines: Mapping[str, str], handles: Sequence[Any] = ()) -> Figure:
    """Draws final loss, largest attention logit of the run and final attention entropy against LR.

    The loss panel is the left half of Figure 1 in Wortsman et al. 2023. `lines` maps each arm to its label, in the
    order of the line styles. `handles` explain in the legend what a caller adds.
    """
    figure, (loss, logit, entropy) = panels(3)
    shades, styles = colours(runs["size"].unique().tolist()), arm_lines(lines)
    for axes, column in ((loss, "validation/loss"), (logit, "logit_max"), (entropy, "entropy_final")):
        for (n, arm), group in runs.groupby(["size", "arm"]):
            if group[column].notna().any():
                line_over_seeds(axes, group, column, shades[n], styles[arm])
        lr_axis(axes, runs["optimizer.lr"])
    loss.set_ylabel("final validation loss (nats)")
    logit.set(yscale="log", ylabel=LOGIT_LABEL)
    entropy.set(yscale="log", ylabel="attention entropy (nats)")
    logit_guides(logit)
    broke = runs[runs["state"] == "diverged"]
    cap_line(loss, broke)
    bigram_guide(loss, common_floor(runs, "bigram"), loss.get_ylim())
    labels = {label: styles[arm] for arm, label in lines.items()}
    legend_above(figure, shades, labels, [*handles, *outcome_handles(runs)])
    return figure


@styled
def sensitivity_against_size(curves: Mapping[tuple[int, str], OverSeeds], lines: Mapping[str, str]) -> Figure:
    """Draws LR sensitivity against N with one line per arm (Wortsman et al. 2023, Figure 1, right half).

    With several seeds it draws their mean and standard deviation.
    """
    figure, (axes,) = panels(1, width=3.2)
    shades = ("#21506e", "#b5542b", "0.3", "0.6")[: len(lines)]
    for (arm, label), style, colour in zip(lines.items(), LINES[: len(lines)], shades, strict=True):
        found = sorted((n, curve) for (n, of), curve in curves.items() if of == arm)
        ns, means = [n for n, _ in found], [curve.mean for _, curve in found]
        axes.errorbar(
            ns, means, yerr=[curve.std or 0 for _, curve in found] if any(c.std for _, c in found) else None,
            color=colour, linestyle=style, marker="o", capsize=2, elinewidth=0.8, label=label,
            markerfacecolor=colour if style == "-" else "white",
        )  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="parameters N, without embedding and head", ylabel="LR sensitivity (nats)"
    )
    plain_ticks(axes)
    sizes = sorted({n for n, _ in curves})
    size_ticks(axes, sizes)
    axes.margins(x=0.12, y=0.15)
    legend(figure, axes.get_legend_handles_labels()[0])
    return figure


@styled
def against_size(
    quantities: Mapping[str, Mapping[str, Mapping[int, tuple[float, float | None]]]], linear: Sequence[str] = ()
) -> Figure:
    """Draws one panel per quantity against N, with a colour and marker for each arm.

    `quantities` maps axis label, arm and N to a value and the half length of its error bar (or None). The y axis is
    logarithmic unless the label is in `linear`.
    """
    figure, axes = panels(len(quantities), width=3.2 if len(quantities) == 1 else 2.6)
    names = list(dict.fromkeys(arm for arms in quantities.values() for arm in arms))
    handles: dict[str, Any] = {}
    for panel, (label, arms) in zip(axes, quantities.items(), strict=True):
        for arm, values in arms.items():
            ns, i = sorted(values), names.index(arm)
            handle = panel.errorbar(
                ns, [values[n][0] for n in ns], yerr=[values[n][1] or 0.0 for n in ns], label=arm, capsize=2,
                elinewidth=0.8, color=ARM_COLOURS[i % len(ARM_COLOURS)], marker=ARM_MARKERS[i % len(ARM_MARKERS)],
                linestyle=LINES[i // len(ARM_COLOURS) % len(LINES)],
            )  # fmt: skip
            handles.setdefault(arm, handle)
        panel.set(xscale="log", xlabel="parameters N", ylabel=label, yscale="linear" if label in linear else "log")
        if label not in linear:
            plain_ticks(panel)
        sizes = sorted({n for values in arms.values() for n in values})
        size_ticks(panel, sizes)
        panel.margins(x=0.12, y=0.12)
    legend(figure, [*handles.values()])
    return figure


@styled
def arms_in_time(
    rows: Mapping[tuple[int, str], pd.DataFrame], lrs: Mapping[int, float], lines: Mapping[str, str]
) -> Figure:
    """Draws training loss, and block 0's largest logit with its factors, against step (Figures 2 and E.1).

    `rows` holds the metrics of one run for each size and arm; `lrs` is the LR in the legend for each size.
    """
    figure, axes = panels(2, rows=2, width=2.9)
    shades, styles = colours([n for n, _ in rows]), arm_lines(lines)
    for (n, arm), frame in rows.items():
        trained = frame[frame["step"] >= 0]
        norms = None
        if {"attention/block0/q_norm", "attention/block0/k_norm"} <= set(trained):
            norms = trained["attention/block0/q_norm"] * trained["attention/block0/k_norm"]
        values = (
            smooth(trained["train/loss"]), trained.get("attention/block0/logit_max"), norms,
            trained.get("attention/block0/cosine_of_max_pair"),
        )  # fmt: skip
        for panel, value in zip(axes, values, strict=True):
            if value is not None and (shown := np.isfinite(value)).any():
                panel.plot(trained["step"][shown], value[shown], color=shades[n], linestyle=styles[arm])
    labels = (
        "training loss (nats)",
        f"{LOGIT_LABEL}, block 0",
        "query norm × key norm, block 0",
        "cosine of largest pair",
    )
    for panel, label in zip(axes, labels, strict=True):
        panel.set(ylabel=label)
        step_axis(panel)
    for panel in axes[1:3]:
        panel.set_yscale("log")
    logit_guides(axes[1])
    axes[3].set_ylim(-1.02 if axes[3].get_ylim()[0] < 0 else 0, 1.02)
    shades_of, notes = {n: shades[n] for n in sorted(shades)}, {n: f", LR {lr:g}" for n, lr in lrs.items()}
    legend_above(figure, shades_of, {label: styles[arm] for arm, label in lines.items()}, notes=notes)
    return figure


OVERLAID = 6
"""Most arms that share a panel."""


@styled
def loss_against_lr(runs: pd.DataFrame) -> Figure:
    """Draws final loss against LR for any sweep, with bands over seeds.

    Up to six arms are overlaid in different colours, with a panel for each size. A single arm, or more, have a panel
    each, with a line for each size.
    """
    arms, sizes = list(dict.fromkeys(runs["arm"])), sorted(runs["size"].unique().tolist())
    overlaid = 1 < len(arms) <= OVERLAID
    facets: Sequence[Any] = sizes if overlaid else arms
    by, along = ("size", "arm") if overlaid else ("arm", "size")
    shades: dict[Any, Any] = dict(zip(arms, ARM_COLOURS, strict=False)) if overlaid else colours(sizes)
    columns = min(3, len(facets))
    width = max(PANEL[0], 3.2 if columns == 1 else 0)
    figure, axes = panels(columns, rows=math.ceil(len(facets) / columns), width=width)
    broke = runs[runs["state"] == "diverged"]
    for i, (panel, facet) in enumerate(zip(axes, facets, strict=False)):
        if i:
            panel.sharey(axes[0])  # must precede drawing: otherwise the first panel's limits clip the others'
        shown = runs[runs[by] == facet]
        for key in [key for key in shades if (shown[along] == key).any()]:
            line_over_seeds(panel, shown[shown[along] == key], "validation/loss", shades[key], "-")
        lr_axis(panel, runs["optimizer.lr"])
        panel.set_title(f"N = {size_label(facet)}" if overlaid else textwrap.fill(facet, int(14 * width)))
        panel.set_ylabel("final validation loss (nats)" if i % columns == 0 else "")
        cap_line(panel, broke)
    limits = axes[0].get_ylim()
    for panel, facet in zip(axes, facets, strict=False):
        bigram_guide(panel, common_floor(runs[runs[by] == facet], "bigram"), limits)
    for panel in axes[len(facets) :]:
        panel.remove()
    handles = [*(colour_handles(shades) if overlaid else []), *outcome_handles(runs)]
    legend_above(figure, {} if overlaid else shades, {}, handles)
    return figure


@styled
def run_curves(rows: pd.DataFrame) -> Figure:
    """Draws a run's curves over steps: loss and, by block, largest logit, entropy and gradient RMS / epsilon."""
    figure, (loss, logit, entropy, gradient) = panels(2, rows=2, width=2.9)
    trained = rows[rows["step"] >= 0]
    loss.plot(trained["step"], trained["train/loss"], color="0.7", linewidth=0.6, label="batch")
    loss.plot(trained["step"], smooth(trained["train/loss"]), color="0.15", label="running median")
    if "validation/loss" in rows:
        seen = rows[rows["validation/loss"].notna()]
        loss.plot(seen["step"], seen["validation/loss"], "o", color="#b5542b", label="validation")
    loss.legend(loc="best")
    blocks = sorted({int(c.split("/")[1][5:]) for c in rows if c.startswith(("attention/block", "residual/block"))})
    shades = colours(blocks)
    for block in blocks:
        series = {
            logit: rows.get(f"attention/block{block}/logit_max"),
            entropy: rows.get(f"attention/block{block}/entropy"),
            gradient: rows[[c for c in rows if _is_gradient(c, block)]].min(axis=1),
        }
        for axes, value in series.items():
            if value is not None and (seen := np.isfinite(value)).any():
                axes.plot(rows["step"][seen], value[seen], color=shades[block], label=f"block {block}")
    logit.set(yscale="log", ylabel=LOGIT_LABEL)
    plain_ticks(logit)
    logit_guides(logit)
    entropy.set(ylabel="attention entropy (nats)", ylim=(0, None))
    gradient.set(yscale="log", ylabel="smallest gradient RMS / ε")
    if gradient.get_ylim()[0] < 10:
        gradient.axhline(1, color="0.45", linestyle=":", linewidth=0.9)
    loss.set_ylabel("training loss (nats)")
    for axes in (loss, logit, entropy, gradient):
        axes.set_xlabel("step")
    if handles := logit.get_legend_handles_labels()[0]:
        legend(figure, handles)
    return figure


def _is_gradient(column: str, block: int) -> bool:
    return column.startswith(f"adam/block{block}/") and column.endswith("/gradient_over_eps")
