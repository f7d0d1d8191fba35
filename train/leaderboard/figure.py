"""Draws the figure of a leaderboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from train.leaderboard.rows import FLOOR
from train.leaderboard.table import heading
from train.results.style import styled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TOP = 1.0
"""The colour scale ends this many nats above the best loss of a size."""


@styled
def figure(table: pd.DataFrame) -> Figure:
    """Draws a heatmap of loss over choices and LRs for each size, best choice on top, and the losses at the best LR.

    Hollow points are losses of the window's seed, where the confirming seeds have not all ended.
    """
    import matplotlib
    from matplotlib.figure import Figure

    known = table.dropna(subset=["best_lr"])
    sizes = sorted(known["size"].unique(), reverse=True)
    order = list(known[known["size"] == sizes[0]]["arm"])
    order += [arm for arm in dict.fromkeys(known["arm"]) if arm not in order]
    shown = Figure(figsize=(1.6 + 2.0 * (len(sizes) + 1), 1.5 + 0.17 * len(order)))
    axes = np.ravel(shown.subplots(1, len(sizes) + 1, sharey=True, squeeze=False))
    names = {n: heading(table[table["size"] == n]) for n in sizes}
    image: Any = None
    for panel, n in zip(axes, sizes, strict=False):
        of = known[known["size"] == n].set_index("arm")
        lrs = sorted({lr for found in of["lrs"] for lr in found})
        loss = np.full((len(order), len(lrs)), np.nan)
        for arm, row in of.iterrows():
            loss[order.index(arm), [lrs.index(lr) for lr in row["lrs"]]] = row["window"]
        best = np.nanmin(loss)
        image = panel.imshow(loss - best, aspect="auto", cmap="magma_r", vmin=0, vmax=TOP)
        for i, arm in enumerate(order):
            if arm in of.index:
                _marks(panel, i, of.loc[arm], lrs)
        panel.set_xticks(range(len(lrs)), [f"{lr:g}" for lr in lrs])
        panel.set(xlabel="peak learning rate", title=f"{names[n]}, best {best:.3f} nats")
        panel.grid(False)
    axes[0].set_yticks(range(len(order)), order)
    for i, n in enumerate(sizes):
        of = known[(known["size"] == n)].set_index("arm")
        colour = matplotlib.colormaps["viridis"](0.05 if i == 0 else 0.65)
        for confirmed, rows in ((True, of.dropna(subset=["loss"])), (False, of[of["loss"].isna()])):
            axes[-1].errorbar(
                rows["loss" if confirmed else "best"], [order.index(arm) for arm in rows.index],
                xerr=rows["std"].fillna(0) if confirmed else None, fmt="o", color=colour,
                markerfacecolor=colour if confirmed else "white", capsize=1.5, elinewidth=0.7, markersize=3,
                label=f"{names[n]}, {'confirmed' if confirmed else 'one seed'}" if len(rows) else None,
            )  # fmt: skip
        for floor in table[(table["size"] == n) & (table["arm"] == FLOOR)]["loss"]:
            axes[-1].axvline(floor, color=colour, linestyle=":", linewidth=0.8, label=f"{FLOOR} {floor:.3f}")
    axes[-1].set(xlabel="loss at the best LR (nats)")
    if axes[-1].has_data():
        handles, labels = axes[-1].get_legend_handles_labels()
        shown.legend(handles, labels, loc="outside lower right", handlelength=1)
    bar = shown.colorbar(image, ax=axes[: len(sizes)], location="bottom", shrink=0.6, aspect=40, extend="max")
    bar.set_label("loss above the panel's best (nats); ring: best LR, cross: diverged")
    return shown


def _marks(panel: Any, i: int, row: Any, lrs: list[float]) -> None:
    panel.plot(
        lrs.index(row["best_lr"]), i, "o", markersize=5, markerfacecolor="none", color="0.1", markeredgewidth=0.8
    )
    if row["diverged"] is not None and row["diverged"] == row["diverged"]:
        for lr in row["lrs"]:
            if lr >= row["diverged"]:
                panel.plot(lrs.index(lr), i, "x", markersize=4, color="white", markeredgewidth=0.8)
