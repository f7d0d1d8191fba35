"""QK-norm, soft-capped logits and norms behind sublayers: the study in rosinality/nanodo, in small.

Its curves of loss against LR are published without a table. The sweep has five arms at two or more sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from train.cli.format import size_label
from train.findings.arm_figures import arms_by_size
from train.findings.arms import LEAST_DIFFERENCE, Arms, arms, pm
from train.findings.base import Finding, register
from train.results.sensitivity import OverSeeds
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = (
    "QK-norm, or soft-capped attention logits together with post-norm, flatten loss against learning rate and let "
    "sizes share a learning rate; soft-cap or post-norm alone don't."
)
SOURCE = "rosinality/nanodo (GitHub), README"

NAME = "softcap_post_norm"
BASELINE, CAP, POST, BOTH, QK = "baseline", "soft-cap 50", "post-norm", "soft-cap 50 and post-norm", "QK-norm"
ALONE, TOGETHER = (CAP, POST), (BOTH, QK)
SHARED = 0.05
"""Nats that a size may lose at an LR that sizes share, over its own best LR: well above what seeds differ in, half of
what counts as degraded."""


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = arms(NAME, runs, (BASELINE, CAP, POST, BOTH, QK))
    checks = [flatter(sweep), alone_less_flat(sweep), share(sweep, TOGETHER), share(sweep, (BASELINE, *ALONE))]
    notes = ["The study's own curves are of 34M and 691M parameters at 50,000 steps, and have no table"]
    if len(sweep.sizes()) > 1:
        notes.append(f"Sizes differ by a factor of {sweep.sizes()[-1] / sweep.sizes()[0]:.3g} in N, theirs by 20")
    return Verdict(NAME, checks, notes + sweep.notes())


def _sensitivities(sweep: Arms) -> list[tuple[int, dict[str, OverSeeds]]]:
    return [(n, dict(zip(sweep.names, curves, strict=True))) for n, curves in sweep.together(*sweep.names)]


def _numbers(found: list[tuple[int, dict[str, OverSeeds]]]) -> list[dict[str, Any]]:
    return [{"N": n, **{arm: curve.mean for arm, curve in curves.items()}} for n, curves in found]


def flatter(sweep: Arms) -> Check:
    """Passes when at every size the LR sensitivity with QK-norm, and with soft-cap and post-norm, is below the
    baseline's by what `Arms.needed` asks for."""
    found, gaps = _sensitivities(sweep), sweep.gaps()
    good = [c[BASELINE].mean - c[arm].mean > sweep.needed(c[BASELINE], c[arm]) for _, c in found for arm in TOGETHER]
    parts = [
        f"N={size_label(n)} {pm(c[BASELINE].mean, c[BASELINE].std)} -> "
        + ", ".join(f"{arm} {pm(c[arm].mean, c[arm].std)}" for arm in TOGETHER)
        for n, c in found
    ]
    return Check(
        claim="QK-norm, and soft-cap with post-norm, lower LR sensitivity at every size",
        passed=all(good) if found and not gaps else None,
        numbers={"sizes": _numbers(found), "least_difference": LEAST_DIFFERENCE},
        text=f"{gaps}{sum(good)} of {len(good)}: {'; '.join(parts)}",
    )


def alone_less_flat(sweep: Arms) -> Check:
    """Passes when at every size soft-cap alone and post-norm alone leave a higher LR sensitivity than both together, by
    what `Arms.needed` asks for."""
    found, gaps = _sensitivities(sweep), sweep.gaps()
    good = [c[arm].mean - c[BOTH].mean > sweep.needed(c[arm], c[BOTH]) for _, c in found for arm in ALONE]
    parts = [
        f"N={size_label(n)} " + ", ".join(f"{arm} {pm(c[arm].mean, c[arm].std)}" for arm in ALONE)
        + f", both {pm(c[BOTH].mean, c[BOTH].std)}"
        for n, c in found
    ]  # fmt: skip
    return Check(
        claim="Soft-cap alone and post-norm alone leave LR sensitivity above that of both together",
        passed=all(good) if found and not gaps else None,
        numbers={"sizes": _numbers(found)},
        text=f"{gaps}{sum(good)} of {len(good)}: {'; '.join(parts)}",
    )


def regret(curves: list[OverSeeds]) -> tuple[float, float]:
    """The LR of the grid at which the size that loses most by it loses least, over its own best, and what that is."""
    lrs = curves[0].first.lrs
    means = [
        [sum(one.losses[i] for one in curve.by_seed.values()) / len(curve.by_seed) for i in range(len(lrs))]
        for curve in curves
    ]
    return min((max(m[i] - min(m) for m in means), lr) for i, lr in enumerate(lrs))[::-1]


def share(sweep: Arms, names: tuple[str, ...]) -> Check:
    """For QK-norm and both together: passes when for each there is an LR of the grid at which no size is more than
    SHARED above its own best loss. For the others: passes when there is none for any. None with one size."""
    wanted = names == TOGETHER
    gaps, sizes = sweep.gaps(*names), sweep.sizes(*sweep.names)
    found = {}
    for arm in names:
        curves = [curve for _, (curve,) in sweep.together(arm)]
        if len(curves) == len(sizes) > 1:
            # The sizes' grids are one: the experiment crosses them.
            lr, lost = regret(curves)
            found[arm] = {"lr": lr, "lost": lost}
    open_ = gaps or len(found) < len(names)
    holds = [(one["lost"] <= SHARED) == wanted for one in found.values()]
    parts = [f"{arm} loses {one['lost']:.3f} at LR {one['lr']:g}" for arm, one in found.items()]
    who = "With QK-norm, and with soft-cap and post-norm," if wanted else "With neither, and with either alone,"
    return Check(
        claim=f"{who} {'a' if wanted else 'no'} learning rate is within {SHARED:g} nats of the best at every size",
        passed=None if open_ else all(holds),
        numbers={"arms": found, "tolerance": SHARED},
        text=gaps + ("; ".join(parts) or "no two sizes"),
    )


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Final loss against LR, a panel a size."""
    return {"loss_against_lr": arms_by_size(arms(NAME, runs, (BASELINE, CAP, POST, BOTH, QK)))}


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=6, group="slow"))
