"""sigmaReparam in place of LayerNorm: Zhai et al. 2023, on small language models.

The sweep has three arms at one or more sizes, LRs and seeds: no norm at all, sigmaReparam in place of norms, and
LayerNorm. A run breaks here when its loss degrades or diverges.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.findings.arm_figures import arms_by_size
from train.findings.arms import LEAST_DIFFERENCE, Arms, arms
from train.findings.base import Finding, register
from train.results.sensitivity import DEGRADED, OverSeeds
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = "Without LayerNorm a model with sigmaReparam trains about as well as with it; a plain model doesn't."
SOURCE = "Zhai et al. 2023 (arXiv 2303.06296), abstract and section 4"

NAME = "sigma_reparam"
PLAIN, SIGMA, NORM = "plain", "sigmaReparam", "LayerNorm"
COMPETITIVE = DEGRADED
"""Nats by which the best loss with sigmaReparam may be above that with LayerNorm: what counts as degraded elsewhere."""


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = arms(NAME, runs, (PLAIN, SIGMA, NORM))
    checks = [competitive(sweep), better_than_plain(sweep), plain_breaks(sweep)]
    notes = [
        "The paper's runs without LayerNorm are of vision, speech and translation models; its language models keep it",
        "Not judged: training without warm-up and without adaptive optimizers",
    ]
    return Verdict(NAME, checks, notes + sweep.notes())


def at_each_lr(curve: OverSeeds) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Losses, [seeds, LRs]."""
    return np.array([one.losses for one in curve.by_seed.values()])


def spread(curves: list[OverSeeds]) -> float:
    """Standard deviation between seeds of the loss at an LR: the median over LRs and curves; 0 with one seed."""
    found = [at_each_lr(c).std(axis=0, ddof=1) for c in curves if len(c.by_seed) > 1]
    return float(np.median(np.concatenate(found))) if found else 0.0


def competitive(sweep: Arms) -> Check:
    """Passes when at every size the best mean loss over seeds with sigmaReparam is within COMPETITIVE of that with
    LayerNorm, or below it."""
    found = []
    for n, (sigma, norm) in sweep.together(SIGMA, NORM):
        ours, theirs = (float(at_each_lr(c).mean(axis=0).min()) for c in (sigma, norm))
        found.append({"N": n, "sigmaReparam": ours, "LayerNorm": theirs, "difference": ours - theirs})
    gaps = sweep.gaps(SIGMA, NORM)
    parts = [f"N={size_label(f['N'])} {f['sigmaReparam']:.3f}, with LayerNorm {f['LayerNorm']:.3f}" for f in found]
    return Check(
        claim=f"The best loss with sigmaReparam and no LayerNorm is within {COMPETITIVE:g} nats of LayerNorm's",
        passed=all(f["difference"] <= COMPETITIVE for f in found) if found and not gaps else None,
        numbers={"sizes": found, "tolerance": COMPETITIVE},
        text=gaps + "; ".join(parts),
    )


def better_than_plain(sweep: Arms) -> Check:
    """Passes when at every size and every LR the mean loss over seeds with sigmaReparam is not above the plain model's,
    and at some LR below it by two standard errors between seeds, at least arms.LEAST_DIFFERENCE."""
    found: list[dict[str, Any]] = []
    for n, (sigma, plain) in sweep.together(SIGMA, PLAIN):
        gains = at_each_lr(plain).mean(axis=0) - at_each_lr(sigma).mean(axis=0)
        error = spread([sigma, plain]) * np.sqrt(1 / len(sigma.by_seed) + 1 / len(plain.by_seed))
        needed = max(LEAST_DIFFERENCE, 2 * float(error))
        found.append(
            {"N": n, "gains": dict(zip(map(str, sigma.first.lrs), gains.tolist(), strict=True)), "needed": needed,
             "better": bool(gains.max() > needed and gains.min() >= -needed)}
        )  # fmt: skip
    gaps = sweep.gaps(SIGMA, PLAIN)
    parts = [
        f"N={size_label(f['N'])} {', '.join(f'{g:+.3f} at LR {lr}' for lr, g in f['gains'].items())}" for f in found
    ]
    return Check(
        claim="Without LayerNorm, sigmaReparam lowers the loss at some learning rate and raises it at none",
        passed=all(f["better"] for f in found) if found and not gaps else None,
        numbers={"sizes": found},
        text=f"{gaps}gain in nats: {'; '.join(parts)}",
    )


def plain_breaks(sweep: Arms) -> Check:
    """Passes when at every size there is an LR at which the plain model ends more than DEGRADED above the best loss of
    any arm and LR at its size while sigmaReparam doesn't: training is then saved by sigmaReparam, not slowed."""
    found = []
    for n, curves in sweep.together(PLAIN, SIGMA, NORM):
        plain, sigma, norm = (at_each_lr(c).mean(axis=0) for c in curves)
        limit = min(plain.min(), sigma.min(), norm.min()) + DEGRADED
        lrs = [lr for lr, p, s in zip(curves[0].first.lrs, plain, sigma, strict=True) if p > limit >= s]
        found.append({"N": n, "limit": float(limit), "saved_at": lrs, "plain": plain.tolist(), "sigma": sigma.tolist()})
    gaps = sweep.gaps()
    parts = [f"N={size_label(f['N'])} at LR {', '.join(f'{lr:g}' for lr in f['saved_at']) or '(none)'}" for f in found]
    return Check(
        claim=f"At some LR a plain model ends {DEGRADED:g} nats above the best loss and one with sigmaReparam does not",
        passed=all(f["saved_at"] for f in found) if found and not gaps else None,
        numbers={"sizes": found},
        text=gaps + "; ".join(parts),
    )


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Final loss against LR of the three arms."""
    return {"loss_against_lr": arms_by_size(arms(NAME, runs, (PLAIN, SIGMA, NORM)))}


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=6))
