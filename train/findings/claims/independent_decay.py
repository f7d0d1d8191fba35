"""Independent against coupled weight decay: Figure 6 of Wortsman et al. 2023.

The coupled arm has one LR more at the low end: its sensitivity is the lower one of two windows of the same width
(`train.results.sensitivity.coupled_lr_sensitivity`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from conf.axis import ConfigError
from train.cli.format import size_label
from train.findings.arms import Arms, arms, on_one_grid, pm
from train.findings.base import Finding, register
from train.findings.trends import all_of, in_order
from train.results.figures import against_size, loss_against_lr
from train.results.sensitivity import DEGRADED, OverSeeds, coupled_lr_sensitivity
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = "Weight decay that doesn't follow the peak learning rate makes loss depend less on it than coupled decay does."
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), section 3.2.2, Figure 6"
ARMS = ("independent", "coupled")
SHIFT = 1.25
"""Factor by which the critical LR must differ: as much as `qk_norm` asks it to fall with size."""


def pair(runs: pd.DataFrame) -> Arms:
    """ConfigError when an arm is missing, or when the coupled arm's LRs aren't the others and one below."""
    sweep = arms("independent_decay", runs, ARMS)
    for n in sweep.sizes(*ARMS):
        lrs = [_grid(sweep.runs[(sweep.runs["arm"] == arm) & (sweep.runs["size"] == n)]) for arm in ARMS]
        if lrs[1][1:] != lrs[0]:
            raise ConfigError(
                f"finding independent_decay needs the LRs of independent and one below them for coupled: at "
                f"N={size_label(n)} they are {_text(lrs[0])} and {_text(lrs[1])}"
            )
    return sweep


def _grid(rows: pd.DataFrame) -> list[float]:
    return sorted(rows["optimizer.lr"].unique().tolist())


def _text(lrs: list[float]) -> str:
    return ", ".join(f"{lr:g}" for lr in lrs)


def of_coupled(curve: OverSeeds) -> list[float]:
    """LR sensitivity of the better window, at each seed."""
    return [coupled_lr_sensitivity(one.lrs, one.losses, one.loss_init) for one in curve.by_seed.values()]


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = pair(runs)
    notes = ["Decay a step, times the schedule: lambda with independent decay, LR x lambda with coupled"]
    return Verdict("independent_decay", [lower_sensitivity(sweep), lower_lrs(sweep)], [*notes, *sweep.notes()])


def lower_sensitivity(sweep: Arms) -> Check:
    """Passes when, at every size, LR sensitivity with independent decay is lower by what `Arms.needed` asks for than
    the better window's with coupled decay."""
    sizes: list[dict[str, Any]] = []
    for n in sweep.sizes(*ARMS):
        if any((n, arm) not in sweep.curves for arm in ARMS):
            continue
        independent, coupled = (sweep.curves[n, arm] for arm in ARMS)
        values, (_, plain) = of_coupled(coupled), on_one_grid([independent, coupled])
        difference, needed = float(np.mean(values)) - independent.mean, sweep.needed(independent, coupled)
        sizes.append(
            {"N": n, "independent": independent.mean, "std": independent.std, "coupled": float(np.mean(values)),
             "coupled_over_the_same_lrs": plain.mean, "difference": difference, "needed_difference": needed,
             "lower": difference > needed}
        )  # fmt: skip
    gaps = sweep.gaps()
    parts = [
        f"N={size_label(s['N'])} {pm(s['independent'], s['std'])} against {s['coupled']:.3f}"
        f" ({s['coupled_over_the_same_lrs']:.3f} over the same LRs)"
        for s in sizes
    ]
    return Check(
        claim="LR sensitivity is lower with independent than with coupled decay at every size",
        passed=None if gaps or not sizes else all(s["lower"] for s in sizes),
        numbers={"sizes": sizes},
        text=f"{gaps}lower at {sum(s['lower'] for s in sizes)} of {len(sizes)} sizes: {'; '.join(parts)} nats",
    )


def lower_lrs(sweep: Arms) -> Check:
    """Passes when, at every size, the critical LR (median over seeds) with coupled decay is lower by a factor SHIFT.

    The paper compares two windows as coupled decay puts the range of good LRs lower. One that never degrades counts as
    beyond the grid; a size where neither does is open.
    """
    sizes: list[dict[str, Any]] = []
    for n, (independent, coupled) in sweep.together(*ARMS):
        a, b = independent.median("critical_lr"), coupled.median("critical_lr")
        sizes.append({"N": n, "independent": a, "coupled": b, "lower": _lower(a, b)})
    gaps = sweep.gaps()
    top = sweep.runs["optimizer.lr"].max()
    parts = [
        f"N={size_label(s['N'])} " + " against ".join(f"{s[arm]:.2g}" if s[arm] else f"> {top:g}" for arm in ARMS)
        for s in sizes
    ]
    return Check(
        claim="The LR at which the loss degrades is lower with coupled decay at every size",
        passed=None if gaps else all_of(s["lower"] for s in sizes),
        numbers={"sizes": sizes, "needed_factor": SHIFT, "margin": DEGRADED},
        text=f"{gaps}critical LR, independent against coupled: {'; '.join(parts)}",
    )


def _lower(independent: float | None, coupled: float | None) -> bool | None:
    if coupled is None:
        return None if independent is None else False
    return independent is None or independent >= SHIFT * coupled


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Figure 6: loss against LR for both, and LR sensitivity against N."""
    sweep = pair(runs)
    values: dict[str, dict[int, tuple[float, float | None]]] = {arm: {} for arm in ARMS}
    for (n, arm), curve in sweep.curves.items():
        values[arm][n] = (float(np.mean(of_coupled(curve))), None) if arm == "coupled" else (curve.mean, curve.std)
    return {
        "loss_against_lr": loss_against_lr(in_order(sweep)),
        "lr_sensitivity": against_size({"LR sensitivity (nats)": values}),
    }


register(Finding("independent_decay", CLAIM, SOURCE, judge, draw, minutes=4))
