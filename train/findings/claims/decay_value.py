"""The value of independent weight decay: Figure E.10 of Wortsman et al. 2023.

Arms differ in `optimizer.weight_decay` alone (null is the paper's 1e-4) and are taken in its order. Under independent
decay a weight shrinks by the factor exp(-lambda sum_t s_t) over a run, so that a run of 400 steps needs a larger lambda
than one of 1e5 for the same effect.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from train.cli.format import size_label
from train.findings.arm_figures import arm_colours, arms_legend, loss_panel
from train.findings.arms import Arms, arms, optimal_lr
from train.findings.base import Finding, register
from train.findings.null_claims import by_value
from train.findings.trends import Value, optimum
from train.results.style import panels, styled
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = "More independent weight decay moves the optimal learning rate slightly to the right."
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), section 3.2.5, Figure E.10"
DEFAULT = 1e-4
"""What weight_decay=null is with independent decay (section 2.1)."""
LEAST = 1.1
"""Factor that an optimal LR must move by to have moved: 0.02 nats between seeds move that of a curve which rises by 0.1
nats in half a decade by about as much."""
SLIGHT = 10.0
"""Factor from which a move is no slight one: two of the paper's six steps between LRs. Its text has no number."""

AT_EDGE = "no optimum inside the grid"


def values(runs: pd.DataFrame) -> Arms:
    known = runs
    if "optimizer.weight_decay" in runs:
        known = runs.assign(**{"optimizer.weight_decay": runs["optimizer.weight_decay"].astype(float).fillna(DEFAULT)})
    return arms("decay_value", known, by_value("decay_value", known, "optimizer.weight_decay"))


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = values(runs)
    ours = "The paper's text doesn't say which values it swept: these are ours"
    return Verdict("decay_value", [right(sweep), slightly(sweep)], [ours, *sweep.notes()])


def shift(sweep: Arms, smaller: str, larger: str) -> Value | None:
    """Log of the factor from one arm's optimal LR to the other's, the mean over the sizes at which both have one inside
    the grid; None without such a size."""
    moves = []
    for n in sweep.sizes(smaller, larger):
        if (n, smaller) in sweep.curves and (n, larger) in sweep.curves:
            a, b = (optimum(sweep, sweep.curves[n, arm]) for arm in (smaller, larger))
            if a and b:
                moves.append(b - a)
    return sum(moves[1:], moves[0]).times(1 / len(moves)) if moves else None


def right(sweep: Arms) -> Check:
    """Passes when the optimal LR of the largest decay is more than LEAST times that of the smallest, by two standard
    errors (see `trends.optimum`), and none falls as clearly from one value to the next; fails when it surely is not."""
    first, last = sweep.names[0], sweep.names[-1]
    moved, gaps = shift(sweep, first, last), sweep.gaps()
    steps = {f"{a} to {b}": shift(sweep, a, b) for a, b in itertools.pairwise(sweep.names)}
    passed = None
    if moved and not gaps:
        falls = any(step is not None and step.below(0) for step in steps.values())
        passed = False if falls else moved.above(math.log(LEAST))
    optima = _optima(sweep)
    parts = [
        f"{s['arm']}: N={size_label(s['N'])} {s['lr']:.2g}" + (" (grid's edge)" if s["edge"] else "") for s in optima
    ]
    return Check(
        claim="The optimal LR rises with weight decay",
        passed=passed,
        numbers={"optima": optima, "log_shift": moved and moved.numbers(), "least_factor": LEAST,
                 "log_steps": {k: v and v.numbers() for k, v in steps.items()}},
        text=f"{gaps}{first} to {last}: {moved.factor() if moved else AT_EDGE}; {', '.join(parts)}",
    )  # fmt: skip


def slightly(sweep: Arms) -> Check:
    """Passes when the move from the smallest to the largest decay is below SLIGHT, by two standard errors."""
    moved, gaps = shift(sweep, sweep.names[0], sweep.names[-1]), sweep.gaps()
    return Check(
        claim=f"It moves by less than a factor of {SLIGHT:g}",
        passed=abs(moved).below(math.log(SLIGHT)) if moved and not gaps else None,
        numbers={"log_shift": moved and moved.numbers(), "limit": SLIGHT},
        text=gaps + (moved.factor() if moved else AT_EDGE),
    )


def _optima(sweep: Arms) -> list[dict[str, Any]]:
    found = []
    for (n, arm), curve in sweep.curves.items():
        inside = optimum(sweep, curve)
        found.append(
            {"N": n, "arm": arm, "lr": math.exp(inside.value) if inside else optimal_lr(curve), "edge": inside is None,
             "log_error": inside and inside.error, "lr_sensitivity": curve.mean, "std": curve.std,
             "decay": float(sweep.runs.loc[sweep.runs["arm"] == arm, "optimizer.weight_decay"].iloc[0])}
        )  # fmt: skip
    return found


@styled
def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Loss against LR, a panel for each size, and the optimal LR against decay."""
    sweep = values(runs)
    sizes, colours = sweep.sizes(), arm_colours(sweep)
    columns = min(3, len(sizes) + 1)
    figure, axes = panels(columns, rows=-(-(len(sizes) + 1) // columns), width=2.6)
    for panel, n in zip(axes, sizes, strict=False):
        loss_panel(panel, sweep, n)
        panel.set_ylabel("final validation loss (nats)")
    at = axes[len(sizes)]
    optima = _optima(sweep)
    for n, style in zip(sizes, ("-", "--", ":", "-."), strict=False):
        rows = sorted((s for s in optima if s["N"] == n), key=lambda s: s["decay"])
        at.plot([s["decay"] for s in rows], [s["lr"] for s in rows], color="0.6", linestyle=style, zorder=1)
    for s in optima:
        spread = math.exp(s["log_error"] or 0.0)
        colour = colours[s["arm"]]
        at.errorbar(
            s["decay"], s["lr"], yerr=[[s["lr"] - s["lr"] / spread], [s["lr"] * spread - s["lr"]]], marker="o",
            capsize=2, elinewidth=0.8, color=colour, markerfacecolor="white" if s["edge"] else colour,
        )  # fmt: skip
    at.set(xscale="log", yscale="log", xlabel="independent weight decay λ", ylabel="optimal learning rate")
    for panel in axes[len(sizes) + 1 :]:
        panel.remove()
    arms_legend(figure, {f"λ = {arm}": colour for arm, colour in colours.items()})
    return {"loss_against_lr": figure}


register(Finding("decay_value", CLAIM, SOURCE, judge, draw, minutes=5))
