"""Arms in the order of a config value, null claims, and means over the end of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from conf.axis import ConfigError
from train.cli.format import size_label
from train.findings.arms import Arms, pm
from train.findings.trends import Value, all_of
from train.results.sensitivity import OverSeeds
from train.results.verdict import Check

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = 0.05
"""Nats by which two LR sensitivities may differ and still count as the same: a third of the least that qk-norm changes
one by in the sweep of `qk_norm` (0.15, 25k parameters). Set before any run of a null claim was seen."""


def by_value(finding: str, runs: pd.DataFrame, column: str) -> list[str]:
    """The arms in ascending order of a config value. ConfigError where they don't differ in it, or one has several."""
    of = runs.dropna(subset=["arm"]).groupby("arm")[column] if {"arm", column} <= set(runs) else None
    values = {} if of is None else {str(arm): sorted(found.dropna().unique()) for arm, found in of}
    values = {arm: found for arm, found in values.items() if found}
    firsts = {found[0] for found in values.values()}
    if len(firsts) < 2 or len(firsts) < len(values) or any(len(found) > 1 for found in values.values()):
        raise ConfigError(
            f"finding {finding} compares arms of different {column}, this sweep has "
            f"{', '.join(values) or 'none'}: run it with experiment={finding}"
        )
    return sorted(values, key=lambda arm: values[arm][0])


def tail(rows: pd.DataFrame, column: str, share: float) -> float:
    """Mean of a column over the last share of a run's steps, where it was recorded; NaN where it never was."""
    if column not in rows:
        return math.nan
    last = rows[rows["step"] >= (1 - share) * rows["step"].max()][column].dropna()
    return float(last.mean()) if len(last) else math.nan


def above_best(curve: OverSeeds) -> float:
    """The part of an LR sensitivity that LRs above the best one make."""
    parts = [
        np.mean([(lr > one.best_lr) * (loss - one.best_loss) for lr, loss in zip(one.lrs, one.losses, strict=True)])
        for one in curve.by_seed.values()
    ]
    return float(np.mean(parts))


def unchanged(sweep: Arms, reference: str, arm: str) -> Check:
    """Passes when, at every size, the LR sensitivities of the two arms differ by less than TOLERANCE with two standard
    errors to spare; fails when at some size they differ by more than that with as much to spare.

    Between the two it stays open, and so it does with one seed: a null claim needs a noise that would have shown a
    difference.
    """
    sizes: list[dict[str, Any]] = []
    for n, (a, b) in sweep.together(reference, arm):
        noise = sweep.noise
        error = math.inf if noise is None else noise * math.sqrt(1 / len(a.by_seed) + 1 / len(b.by_seed))
        difference = Value(b.mean - a.mean, error)
        sizes.append(
            {"N": n, "reference": a.mean, "arm": b.mean, "std_reference": a.std, "std_arm": b.std, "error": error,
             "difference": difference.value, "above_best_reference": above_best(a), "above_best_arm": above_best(b),
             "same": abs(difference).below(TOLERANCE)}
        )  # fmt: skip
    gaps = sweep.gaps(reference, arm)
    parts = [
        f"N={size_label(s['N'])} {pm(s['reference'], s['std_reference'])} -> {pm(s['arm'], s['std_arm'])} "
        f"(above the best LR {s['above_best_reference']:.3f} -> {s['above_best_arm']:.3f}; two standard errors "
        f"{2 * s['error']:.3f})"
        for s in sizes
    ]
    return Check(
        claim=f"LR sensitivity is the same with {arm} as with {reference}",
        passed=None if gaps else all_of(s["same"] for s in sizes),
        numbers={"sizes": sizes, "tolerance": TOLERANCE},
        text=f"{gaps}the same within {TOLERANCE:g} nats at {sum(s['same'] is True for s in sizes)} of {len(sizes)} "
        f"sizes: {'; '.join(parts)}",
    )


def noise_note(sweep: Arms) -> list[str]:
    """What a reader of a null claim has to know when it can't be decided."""
    return [] if sweep.noise is not None else ["One seed a curve: a claim of no change stays open; add seed=0,1"]


def short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
