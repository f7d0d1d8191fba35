"""AdamW's epsilon against the gradients: Figures 12, 13 and E.15 of Wortsman et al. 2023, scaled down. Our extension.
 The paper shows it once, at 4.8B parameters and LR 0.3, where gradients sink to the default epsilon of 1e-8. Gradients
of small models don't, so epsilon is raised to them instead: what counts is their ratio. Arms differ in `optimizer.eps`
alone and are placed by the RMS that the gradients of PLACE have under the smallest epsilon."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from train.findings.arm_figures import arms_legend
from train.findings.arms import LEAST_DIFFERENCE, Arms, arms, pooled_std
from train.findings.base import Finding, register
from train.findings.null_claims import by_value, tail
from train.findings.trends import Value
from train.results.sensitivity import DEGRADED
from train.results.style import colours, panels, smooth, styled
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = (
    "Where gradients are as small as AdamW's epsilon updates shrink and loss suffers; an epsilon of 1e-15 heals it, "
    "one 100 times as large as the gradients breaks training."
)
SOURCE = (
    "After Wortsman et al. 2023 (arXiv 2309.14322), section 3.4, Figures 12, 13 and E.15; scaled down, our extension"
)
PLACE = "block0/mlp.up"
"""Where the paper looks: the first MLP layer of the first block."""
LAST = 0.25
"""Share of a run over which RMS are averaged. The paper's is its last 500 steps, too few of ours to be watched
often."""
NEAR = 10.0
"""An epsilon stands for the paper's 1e-8 when it is within this factor of the gradients' RMS."""
FAR = 30.0
"""It stands for 1e-6, 100 times the gradients, from this factor on."""
SHRUNK = 0.5
"""By u = m / (sqrt(v) + eps) an epsilon of the size of sqrt(v) halves updates."""
EVEN = 0.8
"""An update within this factor of that under the smallest epsilon has not shrunk."""


@dataclass(frozen=True)
class Means:
    """Over the seeds of an arm, at its only LR and size."""

    eps: float
    loss: Value
    gradient: float
    """RMS after clipping, which is what epsilon meets."""
    update: float
    """RMS over the LR."""


def ladder(runs: pd.DataFrame) -> Arms:
    return arms("epsilon", runs, by_value("epsilon", runs, "optimizer.eps"))


def means(sweep: Arms, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Means]:
    """By arm, those of the largest size and LR in the sweep, ascending in eps; arms without an ended run are left
    out."""
    rows = sweep.runs[(sweep.runs["size"] == sweep.runs["size"].max()) & sweep.runs["ended"]]
    rows = rows[rows["optimizer.lr"] == rows["optimizer.lr"].max()]
    losses = {
        arm: np.minimum(g["validation/loss_final"].fillna(math.inf), g["validation/loss_init"])
        for arm, g in rows.groupby("arm")
    }
    noise = pooled_std(list(losses.values()))
    found = {}
    for arm in (name for name in sweep.names if name in losses):
        own = rows[rows["arm"] == arm]
        eps = float(own["optimizer.eps"].iloc[0])
        ratio, update = (
            float(np.mean([tail(metrics[run], column, LAST) for run in own["run"]]))
            for column in (f"adam/{PLACE}/gradient_over_eps", f"update/{PLACE}/rms")
        )
        error = LEAST_DIFFERENCE / 8**0.5 if noise is None else noise / math.sqrt(len(own))
        found[arm] = Means(eps, Value(float(losses[arm].mean()), error), ratio * eps, update)
    return found


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = ladder(runs)
    found = means(sweep, metrics)
    notes = [
        "Our extension: the paper's gradients, of a 4.8B model, sink to a fixed epsilon; here it is raised to them",
        "No run ends above its loss at initialisation in small models: breaking is judged as more than "
        f"{DEGRADED:g} nats above the best",
    ]
    checks = [updates(sweep, found), smallest_is_better(sweep, found), far_breaks(sweep, found)]
    return Verdict("epsilon", checks, [*notes, *_seeds(sweep)])


def _seeds(sweep: Arms) -> list[str]:
    missing = [name for arm in sweep.names for name in sweep.missing[arm]]
    lrs = ", ".join(f"{lr:g}" for lr in sorted(sweep.runs["optimizer.lr"].unique()))
    seeds = f"Seeds an arm: {sweep.runs['seed'].nunique()}; LR: {lrs}"
    return [seeds, *([f"Missing: {'; '.join(missing)}"] if missing else [])]


def placed(found: Mapping[str, Means]) -> tuple[Means | None, Means | None, Means | None]:
    """The smallest epsilon, the one nearest to its gradients within NEAR, and the largest, at least FAR times them.

    None for what isn't there. The gradients under the smallest epsilon must be NEAR times it at the least: else there
    is nothing to compare with.
    """
    by_eps = sorted(found.values(), key=lambda m: m.eps)
    if len(by_eps) < 2 or not by_eps[0].gradient > NEAR * by_eps[0].eps:
        return None, None, None
    first, *others = by_eps
    near = min(others, key=lambda m: abs(math.log(m.eps / first.gradient)))
    far = others[-1]
    within = max(near.eps / first.gradient, first.gradient / near.eps) <= NEAR
    return first, near if within else None, far if far.eps >= FAR * first.gradient else None


def updates(sweep: Arms, found: Mapping[str, Means]) -> Check:
    """Passes when, in every arm whose gradients are smaller than its epsilon, updates are below SHRUNK of those under
    the smallest epsilon, and in every arm with gradients 100 times its epsilon above EVEN of them. None without an arm
    of the first kind.

    Both bounds are what AdamW's formula says of a gradient that doesn't change otherwise. Those between aren't judged.
    """
    first, _, _ = placed(found)
    rows = [
        {"eps": m.eps, "gradient": m.gradient, "gradient_over_eps": m.gradient / m.eps, "update": m.update,
         "update_over_smallest": m.update / first.update}
        for m in found.values() if first and m is not first
    ]  # fmt: skip
    small = [r["update_over_smallest"] < SHRUNK for r in rows if r["gradient_over_eps"] < 1]
    large = [r["update_over_smallest"] > EVEN for r in rows if r["gradient_over_eps"] > 100]
    parts = [f"eps {r['eps']:g}: gradient {r['gradient']:.2g}, update {r['update']:.2g}, "
             f"{r['update_over_smallest']:.2f} of that at {first.eps:g}" for r in rows if first]  # fmt: skip
    gaps = sweep.gaps()
    return Check(
        claim="Updates shrink where gradients are smaller than epsilon",
        passed=None if gaps or not small else all(small + large),
        numbers={"arms": rows, "smallest": first and vars(first) | {"loss": first.loss.numbers()}, "place": PLACE,
                 "shrunk": SHRUNK, "even": EVEN},
        text=gaps + ("; ".join(parts) or "no epsilon far below the gradients to compare with"),
    )  # fmt: skip


def smallest_is_better(sweep: Arms, found: Mapping[str, Means]) -> Check:
    """Passes when the loss under the smallest epsilon is below that under the epsilon nearest to the gradients, by two
    standard errors and LEAST_DIFFERENCE; fails when it surely is not by that much. None without such an epsilon."""
    first, near, _ = placed(found)
    gaps, gain = sweep.gaps(), near.loss - first.loss if first and near else None
    text = "no epsilon within a factor of 10 of the gradients"
    if first and near:
        text = (
            f"loss {first.loss.value:.3f} at eps {first.eps:g}, {near.loss.value:.3f} at {near.eps:g} "
            f"({near.eps / first.gradient:.2g} times the gradients under {first.eps:g}, {near.eps / near.gradient:.2g} "
            f"times its own): gain {gain} nats"
        )
    return Check(
        claim="A smaller epsilon lowers the loss where gradients have come down to it",
        passed=gain.above(LEAST_DIFFERENCE) if gain and not gaps else None,
        numbers={"gain": gain and gain.numbers(), "needed": LEAST_DIFFERENCE, "eps": near and near.eps,
                 "gradient_smallest": first and first.gradient, "gradient": near and near.gradient},
        text=gaps + text,
    )  # fmt: skip


def far_breaks(sweep: Arms, found: Mapping[str, Means]) -> Check:
    """Passes when the loss under the largest epsilon, FAR times the gradients or more, is DEGRADED above the best arm's
    by two standard errors; fails when it surely is not. None without such an epsilon."""
    first, _, far = placed(found)
    gaps, passed, text, cost = sweep.gaps(), None, f"no epsilon {FAR:g} times the gradients", None
    if first and far:
        best = min((m.loss for m in found.values()), key=lambda loss: loss.value)
        cost = far.loss - best
        passed = None if gaps else cost.above(DEGRADED)
        times = f"{far.eps / first.gradient:.2g} times"
        text = f"loss {far.loss.value:.3f} at eps {far.eps:g} ({times}), {cost} above the best"
    return Check(
        claim="An epsilon 100 times the gradients breaks training",
        passed=passed,
        numbers={"cost": cost and cost.numbers(), "needed": DEGRADED, "eps": far and far.eps,
                 "over_gradient": far.eps / first.gradient if first and far else None},
        text=gaps + text,
    )  # fmt: skip


@styled
def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Training loss, gradient RMS and update RMS against step, a line for each run: Figures 12 and 13."""
    sweep = ladder(runs)
    rows = sweep.runs[(sweep.runs["size"] == sweep.runs["size"].max()) & sweep.runs["ended"]]
    rows = rows[rows["optimizer.lr"] == rows["optimizer.lr"].max()]
    shades = dict(zip(sweep.names, colours(range(len(sweep.names))).values(), strict=True))
    figure, (loss, gradient, update) = panels(3)
    for record in rows.to_dict("records"):
        frame, colour = metrics[record["run"]], shades[record["arm"]]
        trained = frame[frame["step"] >= 0]
        loss.plot(trained["step"], smooth(trained["train/loss"]), color=colour, linewidth=0.9)
        for panel, column, factor in (
            (gradient, f"adam/{PLACE}/gradient_over_eps", record["optimizer.eps"]), (update, f"update/{PLACE}/rms", 1.0)
        ):  # fmt: skip
            if column in trained:
                seen = trained[column].notna()
                panel.plot(trained["step"][seen], trained[column][seen] * factor, color=colour, linewidth=0.9)
    for panel in (gradient, update):
        panel.set_yscale("log")
    low, high = gradient.get_ylim()
    for arm, colour in shades.items():
        eps = float(sweep.runs.loc[sweep.runs["arm"] == arm, "optimizer.eps"].iloc[0])
        if low / 100 < eps < 100 * high:
            gradient.axhline(eps, color=colour, linestyle=":", linewidth=0.9)
    loss.set_ylabel("training loss (nats)")
    gradient.set(ylabel="gradient RMS (dotted: ε)")
    update.set(ylabel="update RMS / learning rate")
    for panel in (loss, gradient, update):
        panel.set_xlabel("step")
    arms_legend(figure, shades)
    return {"loss_gradients_and_updates": figure}


register(Finding("epsilon", CLAIM, SOURCE, judge, draw, minutes=4))
