"""Gradients sink with size and LR: Figures 11, E.12 and E.13 of Wortsman et al. 2023, on the runs of qk_norm.

Gradient RMS is that before clipping, as it comes out of the backward pass; update RMS is divided by the LR. Judged on
the runs with qk-norm, as in the paper: without it a broken attention has its own gradients.

Thresholds were set with the mini sweep of 2026-11-21 (one seed) in view, but before this code had judged it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from train.findings.arms import Arms
from train.findings.base import Finding, register
from train.findings.claims.qk_norm import pair
from train.findings.lr_figures import over_sizes_and_lrs
from train.findings.probes import at_end, changes, end_grid, exponents
from train.results.style import colours, legend_above, panels, styled
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = "The RMS of gradients falls with model size and with learning rate, towards AdamW's epsilon."
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), section 3.4, Figures 11, E.12 and E.13"

NAME = "gradient_rms"
MLP, KEY = "block0/mlp.up", "block0/attention.key"
TITLES = {MLP: "the first MLP layer of block 0", KEY: "the key projection of block 0"}
FALL = 2.0
"""Factor by which the RMS must fall over the whole range of LRs, or of sizes: the end of a run is a mean over a few
batches, whose gradients differ by some tens of percent. Set with one sweep in view, where the falls were 2.6 to 88."""
RISE = 1.25
"""Factor by which it may rise between neighbours: those tens of percent."""
NEAR = 10.0
"""Times epsilon: below that gradients make updates smaller."""


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = pair(runs, NAME)
    checks = [with_lr(sweep, metrics, MLP), with_size(sweep, metrics, MLP), key(sweep, metrics)]
    return Verdict(NAME, checks, [*_notes(sweep, metrics), *sweep.notes()])


def _falls(lines: list[tuple[float, list[float]]], unit: str) -> tuple[bool | None, list[dict[str, Any]], str]:
    """Whether each line falls by FALL in all and rises nowhere by more than RISE: None without two points a line."""
    known = [(at, values) for at, values in lines if np.isfinite(values).sum() > 1]
    found = [{unit: at, **changes(values)} for at, values in known]
    if not found:
        return None, [], "no two runs to compare"
    falls = [1 / one["factor"] for one in found]
    fine = all(f >= FALL and one["largest_rise"] <= RISE for f, one in zip(falls, found, strict=True))
    rise = max(one["largest_rise"] for one in found)
    return fine, found, f"{min(falls):.3g}x to {max(falls):.3g}x, largest rise between neighbours {rise:.2f}x"


def with_lr(sweep: Arms, metrics: Mapping[str, pd.DataFrame], tensor: str) -> Check:
    """Passes when at every size the RMS falls by FALL or more from the lowest to the highest LR, and nowhere rises by
    more than RISE from one LR to the next."""
    grid, gaps = end_grid(sweep, sweep.names[1], metrics, f"gradient/{tensor}/rms"), sweep.gaps(sweep.names[1])
    fine, found, text = _falls([(int(n), row.tolist()) for n, row in grid.iterrows()], "N")
    return Check(
        claim=f"Gradient RMS of {TITLES[tensor]} falls with the learning rate at every size",
        passed=None if gaps else fine,
        numbers={"sizes": found, "exponents": exponents(grid), "needed_fall": FALL, "allowed_rise": RISE},
        text=f"{gaps}falls over the LRs: {text}",
    )


def with_size(sweep: Arms, metrics: Mapping[str, pd.DataFrame], tensor: str) -> Check:
    """The same from the smallest to the largest size at every LR."""
    grid, gaps = end_grid(sweep, sweep.names[1], metrics, f"gradient/{tensor}/rms"), sweep.gaps(sweep.names[1])
    fine, found, text = _falls([(float(lr), grid[lr].tolist()) for lr in grid], "lr")
    return Check(
        claim=f"Gradient RMS of {TITLES[tensor]} falls with model size at every learning rate",
        passed=None if gaps else fine,
        numbers={"lrs": found, "exponents": exponents(grid), "needed_fall": FALL, "allowed_rise": RISE},
        text=f"{gaps}falls over the sizes: {text}",
    )


def key(sweep: Arms, metrics: Mapping[str, pd.DataFrame]) -> Check:
    """Passes when both hold for the key projection (Figure E.12, whose "kernel" projection we take to be the key's)."""
    parts = [with_lr(sweep, metrics, KEY), with_size(sweep, metrics, KEY)]
    passed = [part.passed for part in parts]
    return Check(
        claim=f"Gradient RMS of {TITLES[KEY]} falls with both",
        passed=None if None in passed else all(passed),
        numbers={"over_lrs": parts[0].numbers, "over_sizes": parts[1].numbers},
        text="; ".join(part.text for part in parts),
    )


def _notes(sweep: Arms, metrics: Mapping[str, pd.DataFrame]) -> list[str]:
    found = []
    for arm in sweep.names:
        powers = exponents(end_grid(sweep, arm, metrics, f"gradient/{MLP}/rms"))
        if np.isfinite(powers["lr"]):
            found.append(
                f"qk_norm={arm}: gradient RMS of {TITLES[MLP]} goes as N^{powers['size']:.2f} LR^{powers['lr']:.2f}"
            )
    gradient, update = (
        end_grid(sweep, sweep.names[1], metrics, f"{what}/{MLP}/rms") for what in ("gradient", "update")
    )
    least, epsilon = float(np.nanmin(gradient, initial=np.inf)), _epsilon(sweep)
    if np.isfinite(least):
        found.append(
            f"The smallest gradient RMS is {least:.1e}, {least / epsilon:.0f} times epsilon; update RMS of that tensor "
            f"is {np.nanmin(update):.2f} to {np.nanmax(update):.2f}"
        )
        if least > NEAR * epsilon:
            found.append("Not judged: that updates shrink where gradients are near epsilon (Figure E.13), none is")
    return found


def _epsilon(sweep: Arms) -> float:
    return float(sweep.runs["optimizer.eps"].max()) if "optimizer.eps" in sweep.runs else 1e-8


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Figure 11 for both tensors (over N, LR and block), and Figure E.13: update against gradient RMS."""
    sweep = pair(runs, NAME)
    arm, figures = sweep.names[1], {}
    for tensor, name in ((MLP, "first_mlp_layer"), (KEY, "key_projection")):
        grid = end_grid(sweep, arm, metrics, f"gradient/{tensor}/rms")
        if grid.size:
            column = f"gradient/block{{}}/{tensor.partition('/')[2]}/rms"
            label = f"gradient RMS, {TITLES[tensor].removeprefix('the ').removesuffix(' of block 0')}"
            figures[f"gradient_rms_{name}"] = over_sizes_and_lrs(grid, label, of_blocks(sweep, arm, metrics, column))
    ended = [run for name in sweep.names for run in sweep.ended(name).to_dict("records")]
    points = [
        (
            int(run["size"]),
            at_end(metrics[run["run"]], f"gradient/{MLP}/rms"),
            at_end(metrics[run["run"]], f"update/{MLP}/rms"),
        )
        for run in ended
    ]
    if points:
        figures["update_against_gradient_rms"] = _updates(points, _epsilon(sweep))
    return figures


def of_blocks(
    sweep: Arms, arm: str, metrics: Mapping[str, pd.DataFrame], column: str
) -> dict[tuple[int, float], list[float]]:
    """A probe at the end of runs, block by block, at the lowest, middle and highest LR of each size."""
    found = {}
    for n in sweep.sizes(arm):
        rows = sweep.ended(arm, n)
        rows = rows[rows["seed"] == rows["seed"].min()].sort_values("optimizer.lr")
        for i in sorted({0, len(rows) // 2, len(rows) - 1}) if len(rows) else ():
            values = [at_end(metrics[rows["run"].iloc[i]], column.format(b)) for b in range(100)]
            found[n, float(rows["optimizer.lr"].iloc[i])] = [v for v in values if np.isfinite(v)]
    return found


@styled
def _updates(points: list[tuple[int, float, float]], epsilon: float) -> Figure:
    figure, (axes,) = panels(1, width=3.2)
    shades = colours([n for n, *_ in points])
    for n, gradient, update in points:
        axes.plot(gradient, update, "o", color=shades[n])
    axes.axvline(epsilon, color="0.45", linestyle=":", linewidth=0.9)
    axes.annotate("ε", (epsilon, 1), xycoords=("data", "axes fraction"), xytext=(3, -8), textcoords="offset points")
    axes.set(xscale="log", xlabel="gradient RMS, first MLP layer", ylabel="update RMS / LR", ylim=(0, None))
    legend_above(figure, shades, {})
    return figure


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=11))
