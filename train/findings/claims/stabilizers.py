"""Which stabilizer bears which learning rate: Table 4 of Rybakov et al. 2024, in small.

Their runs diverge; ours degrade (`DEGRADED`), each arm held against its own best loss. QK-clip, which
their table doesn't have, is drawn and not judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import le, lt
from typing import TYPE_CHECKING, Any

from train.cli.format import size_label
from train.findings.arm_figures import arms_by_size
from train.findings.arms import Arms, arms
from train.findings.base import Finding, register
from train.results.style import ARM_COLOURS, panels, styled
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = (
    "The learning rate at which training breaks rises from a baseline over LayerScale and sigmaReparam, then "
    "soft-capped logits and QK-norm, to QKV-norm."
)
SOURCE = "Rybakov et al. 2024 (arXiv 2410.16682), Table 4"

NAME = "stabilizers"
PUBLISHED = {
    "baseline": 8e-3, "sigmaReparam": 40e-3, "LayerScale": 40e-3, "soft-cap 50": 60e-3, "QK-norm": 60e-3,
    "QKV-norm": 80e-3,
}  # fmt: skip
"""The first LR of their grid at which each diverges."""
AGREE = 0.6
"""Kendall's tau-b with the published order: of six arms four in five pairs in order; chance reaches it about once in
fifteen."""
BASELINE, LAST = "baseline", "QKV-norm"


def tau_b(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's rank correlation with ties (Kendall 1945); None where one side is all ties."""
    from scipy.stats import kendalltau

    found = float(kendalltau(a, b).statistic)
    return None if math.isnan(found) else found


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = arms(NAME, runs, tuple(PUBLISHED))
    found = first_degraded(sweep)
    checks = [order(sweep, found), baseline_first(sweep, found), qkv_last(sweep, found)]
    notes = ["First LR at which an arm degrades, from its own best loss, in place of their first that diverges"]
    others = [arm for arm in runs["arm"].dropna().unique() if arm not in PUBLISHED] if "arm" in runs else []
    notes += [f"Not in their table and not judged: {', '.join(others)}"] if others else []
    return Verdict(NAME, checks, notes + sweep.notes())


def first_degraded(sweep: Arms) -> list[dict[str, Any]]:
    """For each size at which all arms are complete: by arm the first LR that degrades (median over seeds), inf for
    none, and where the loss crosses the limit between grid points."""
    found = []
    for n, curves in sweep.together(*sweep.names):
        named = dict(zip(sweep.names, curves, strict=True))
        found.append(
            {"N": n, "first": {arm: c.median("first_degraded_lr") or math.inf for arm, c in named.items()},
             "critical": {arm: c.median("critical_lr") or math.inf for arm, c in named.items()},
             "best_loss": {arm: c.first.best_loss for arm, c in named.items()}}
        )  # fmt: skip
    return found


def _texts(one: Mapping[str, Any]) -> str:
    ranked = sorted(one["critical"].items(), key=lambda item: item[1])
    lrs = ", ".join(f"{arm} {lr:.2g}" if math.isfinite(lr) else f"{arm} none" for arm, lr in ranked)
    return f"N={size_label(one['N'])} breaks at LR {lrs}"


def order(sweep: Arms, found: list[dict[str, Any]]) -> Check:
    """Passes when at every size Kendall's tau-b between the published LRs and ours, of the crossing between grid points
    so that a grid of few LRs ties no arms, is at least AGREE. None when no arm degrades, which is no order."""
    taus = [tau_b([PUBLISHED[arm] for arm in one["critical"]], list(one["critical"].values())) for one in found]
    known = [tau for tau in taus if tau is not None]
    gaps = sweep.gaps()
    return Check(
        claim="Stabilizers rank by the learning rate that they bear as published",
        passed=min(known) >= AGREE if len(known) == len(found) and known and not gaps else None,
        numbers={"sizes": found, "tau_b": taus, "published": PUBLISHED, "needed": AGREE},
        text=f"{gaps}tau-b {', '.join(f'{tau:.2f}' for tau in known) or '-'}; {'; '.join(map(_texts, found))}",
    )


def baseline_first(sweep: Arms, found: list[dict[str, Any]]) -> Check:
    """Passes when at every size each stabilizer first degrades at a higher LR of the grid than the baseline."""
    pairs = [(BASELINE, arm) for arm in sweep.names if arm != BASELINE]
    return _all_below("Every stabilizer bears a higher learning rate than the baseline", sweep, found, pairs, lt)


def qkv_last(sweep: Arms, found: list[dict[str, Any]]) -> Check:
    """Passes when at every size no other published stabilizer first degrades at a higher LR of the grid than QKV-norm:
    on a coarse grid it may tie."""
    pairs = [(arm, LAST) for arm in sweep.names if arm != LAST]
    return _all_below("None bears a higher learning rate than QKV-norm", sweep, found, pairs, le)


def _all_below(
    claim: str,
    sweep: Arms,
    found: list[dict[str, Any]],
    pairs: Sequence[tuple[str, str]],
    holds: Callable[[float, float], bool],
) -> Check:
    """Whether at every size `holds` between the first degraded LRs of each pair of arms; None when no arm degrades."""
    compared = [(low, one["first"][low], high, one["first"][high]) for one in found for low, high in pairs]
    wrong = [f"{low} {a:g}, {high} {b:g}" for low, a, high, b in compared if not holds(a, b)]
    degrades = any(math.isfinite(lr) for one in found for lr in one["first"].values())
    gaps = sweep.gaps()
    return Check(
        claim=claim,
        passed=not wrong if degrades and not gaps else None,
        numbers={"wrong": wrong},
        text=f"{gaps}{len(compared) - len(wrong)} of {len(compared)} pairs"
        + (f"; not: {'; '.join(wrong)}" if wrong else ""),
    )


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Final loss against LR of all arms, and their breaking LRs against the published ones."""
    sweep = arms(NAME, runs, tuple(PUBLISHED))
    # The table's arms first: they keep their colours in both figures.
    names = tuple(dict.fromkeys([*PUBLISHED, *runs["arm"].dropna()]))
    figures = {"loss_against_lr": arms_by_size(arms(NAME, runs, names))}
    if found := first_degraded(sweep):
        figures["against_published"] = _against(found, float(sweep.runs["optimizer.lr"].max()))
    return figures


@styled
def _against(found: list[dict[str, Any]], top: float) -> Figure:
    figure, axes = panels(len(found), width=3.4)
    for panel, one in zip(axes, found, strict=True):
        for i, (arm, lr) in enumerate(one["critical"].items()):
            beyond = math.isinf(lr)
            panel.plot(PUBLISHED[arm], 1.4 * top if beyond else lr, "^" if beyond else "o", color=ARM_COLOURS[i],
                       markersize=5, label=f"{arm}{' (none)' if beyond else ''}")  # fmt: skip
        panel.set(xscale="log", yscale="log", title=f"N = {size_label(one['N'])}")
        panel.set(xlabel="first diverging LR, Rybakov et al., 830M", ylabel="LR at which loss degrades")
        lrs = sorted(set(PUBLISHED.values()))
        panel.set_xticks(lrs, [f"{lr:g}" for lr in lrs])
        panel.set_xticks([], minor=True)
        panel.legend(loc="best", fontsize=6.5)
    return figure


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=8, group="slow"))
