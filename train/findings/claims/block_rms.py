"""What the size of block outputs depends on: Figure C.1 of Wortsman et al. 2023, on the runs of qk_norm.

The RMS of the residual stream behind a block, with qk-norm, at the end of runs, for the same block of all sizes: the
paper's index 2, or the last that all have.

Thresholds were set with the mini sweep of 2026-11-21 (one seed) in view, but before this code had judged it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.findings.arms import Arms
from train.findings.base import Finding, register
from train.findings.claims.gradient_rms import of_blocks
from train.findings.claims.qk_norm import pair
from train.findings.lr_figures import over_sizes_and_lrs
from train.findings.probes import at_end, changes, end_grid, exponents
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = "The RMS of block outputs hardly depends on model size, and grows with the learning rate and with depth."
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), Appendix C, Figure C.1"

NAME = "block_rms"
PAPER_BLOCK = 2
SAME = 2.0
"""Factor within which block outputs of the smallest and the largest size count as "roughly" equal; with LR they change
by orders of magnitude."""
GROWTH = 2.0
"""Factor by which they must grow over the LR grid: as much as sizes may differ."""
FALL = 1.1
"""Factor by which they may fall between neighbouring LRs, for noise."""


def column(sweep: Arms) -> str:
    return f"residual/block{block(sweep)}/rms"


def block(sweep: Arms) -> int:
    depths = sweep.runs["model.depth"].dropna()
    return int(min(PAPER_BLOCK, depths.min() - 1)) if len(depths) else 0


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = pair(runs, NAME)
    grid = end_grid(sweep, sweep.names[1], metrics, column(sweep))
    checks = [same_over_sizes(sweep, grid), grows_with_lr(sweep, grid), grows_with_block(sweep, metrics)]
    notes = [f"Judged on block {block(sweep)}, counted from 0; the paper's figure shows block {PAPER_BLOCK}"]
    powers = exponents(grid)
    if np.isfinite(powers["lr"]):
        notes.append(f"Block outputs go as N^{powers['size']:.2f} LR^{powers['lr']:.2f}")
    if "model.depth" in runs and runs["model.depth"].nunique() > 1:
        notes.append("Sizes differ in width and in depth: the same block is a smaller share of a deeper model")
    return Verdict(NAME, checks, notes + sweep.notes())


def same_over_sizes(sweep: Arms, grid: pd.DataFrame) -> Check:
    """Passes when at every LR the outputs of all sizes lie within a factor SAME of each other."""
    gaps = sweep.gaps(sweep.names[1])
    known = grid.dropna(axis=1)
    spread = {float(lr): float(known[lr].max() / known[lr].min()) for lr in known}
    open_ = gaps or len(grid) < 2 or not spread
    worst = max(spread, key=lambda lr: spread[lr], default=0.0)
    text = "one size" if not spread or len(grid) < 2 else (
        f"largest over smallest {min(spread.values()):.2g}x to {spread[worst]:.2g}x (LR {worst:g}), "
        f"N from {size_label(grid.index[0])} to {size_label(grid.index[-1])}"
    )  # fmt: skip
    return Check(
        claim="Block outputs of all sizes are about the same at the same learning rate",
        passed=None if open_ else spread[worst] <= SAME,
        numbers={"spread_by_lr": spread, "allowed_factor": SAME, "exponents": exponents(grid)},
        text=gaps + text,
    )


def grows_with_lr(sweep: Arms, grid: pd.DataFrame) -> Check:
    """Passes when at every size they grow by GROWTH or more over the LRs and fall nowhere by more than FALL."""
    gaps = sweep.gaps(sweep.names[1])
    found: list[dict[str, Any]] = [
        {"N": int(n), **changes(row.tolist())} for n, row in grid.iterrows() if row.notna().sum() > 1
    ]
    fine = all(one["factor"] >= GROWTH and one["largest_fall"] <= FALL for one in found)
    parts = [f"N={size_label(one['N'])} {one['factor']:.3g}x" for one in found]
    return Check(
        claim="Block outputs grow with the learning rate at every size",
        passed=fine if found and not gaps else None,
        numbers={"sizes": found, "needed_growth": GROWTH, "allowed_fall": FALL},
        text=f"{gaps}from the lowest to the highest LR: {'; '.join(parts) or 'no two LRs'}",
    )


def grows_with_block(sweep: Arms, metrics: Mapping[str, pd.DataFrame]) -> Check:
    """Passes when in every run each block's output is larger than that of the block before."""
    steps: list[float] = []
    for run in sweep.ended(sweep.names[1]).to_dict("records"):
        values = np.array(
            [at_end(metrics[run["run"]], f"residual/block{b}/rms") for b in range(int(run["model.depth"]))]
        )
        steps += [float(s) for s in values[1:] / values[:-1] if np.isfinite(s)]
    gaps = sweep.gaps(sweep.names[1])
    text = f"from one block to the next {min(steps):.2f}x to {max(steps):.2f}x" if steps else "no run of two blocks"
    return Check(
        claim="Block outputs grow from block to block in every run",
        passed=min(steps) > 1 if steps and not gaps else None,
        numbers={"least": min(steps, default=None), "largest": max(steps, default=None), "pairs": len(steps)},
        text=gaps + text,
    )


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Figure C.1: over N, LR and block."""
    sweep = pair(runs, NAME)
    grid = end_grid(sweep, sweep.names[1], metrics, column(sweep))
    if not grid.size:
        return {}
    blocks = of_blocks(sweep, sweep.names[1], metrics, "residual/block{}/rms")
    return {"block_output_rms": over_sizes_and_lrs(grid, f"RMS of the output of block {block(sweep)}", blocks)}


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=11))
