"""Attention logits of a given size: Figure 10 of Wortsman et al. 2023.
 Queries and keys are set to the mean square kappa (`qk_norm=fixed`), and the loss is held against that of a bigram
model, the same Transformer without blocks. Runs differ in `qk_norm.kappa` and seed; the LR is one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from conf.axis import ConfigError
from train.findings.arms import LEAST_DIFFERENCE, pooled_std
from train.findings.base import Finding, register
from train.findings.null_claims import short
from train.findings.trends import Value
from train.results.sensitivity import DEGRADED
from train.results.style import panels, styled
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = (
    "With attention logits of the size kappa by construction, loss deteriorates around kappa = 1e3 and is worse than a "
    "bigram model's at 1e4."
)
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), section 3.3, Figure 10"
KAPPA = "qk_norm.kappa"
AROUND, WITHIN = 1e3, 10**0.5
"""Loss has to begin to deteriorate within half a decade of it: nearer to it than to its neighbours on a grid of
decades."""
WORSE = 1e4


@dataclass(frozen=True)
class Points:
    """Means over seeds, losses capped at the loss at initialisation."""

    by_kappa: Mapping[float, Value]
    """Those of which all runs have ended."""
    bigram: Value | None
    missing: list[str]

    @property
    def gaps(self) -> str:
        return (
            f"{len(self.missing)} run{'s' if len(self.missing) > 1 else ''} missing; so far: " if self.missing else ""
        )

    @property
    def best(self) -> Value:
        return min(self.by_kappa.values(), key=lambda loss: loss.value)

    @property
    def crossing(self) -> float | None:
        """The first kappa beyond the best one's at which the loss, linear in log kappa between points, is DEGRADED
        above the best."""
        kappas, losses = list(self.by_kappa), [v.value for v in self.by_kappa.values()]
        level = self.best.value + DEGRADED
        for i in range(int(np.argmin(losses)), len(losses) - 1):
            if losses[i + 1] > level:
                share = (level - losses[i]) / (losses[i + 1] - losses[i])
                return float(kappas[i] * (kappas[i + 1] / kappas[i]) ** share)
        return None


def points(runs: pd.DataFrame) -> Points:
    """ConfigError without several kappas and a model without blocks, or when runs differ in size or LR besides."""
    kappas = runs[KAPPA].astype(float) if KAPPA in runs else runs["seed"] * math.nan
    flat = runs["model.depth"] == 0
    of_kappa = runs[kappas.notna() & ~flat]
    if kappas[~flat].nunique() < 2 or not flat.any():
        raise ConfigError(
            "finding logit_transplant compares values of qk_norm.kappa and a model of depth 0 (bigram): run it with "
            "experiment=logit_transplant"
        )
    if of_kappa["size"].nunique() > 1 or runs["optimizer.lr"].nunique() > 1 or runs.loc[flat, "size"].nunique() > 1:
        raise ConfigError("finding logit_transplant needs runs of one size and one LR, this sweep has several")
    keys = kappas.where(~flat, 0.0)
    chosen = runs.assign(
        key=keys, capped=np.minimum(runs["validation/loss_final"].fillna(math.inf), runs["validation/loss_init"])
    )
    chosen = chosen[chosen["key"].notna()]
    complete = {float(key): g["capped"] for key, g in chosen.groupby("key") if g["ended"].all()}
    noise = pooled_std(complete.values())
    found = {}
    for key, losses in sorted(complete.items()):
        error = LEAST_DIFFERENCE / 8**0.5 if noise is None else noise / math.sqrt(len(losses))
        found[key] = Value(float(losses.mean()), error)
    missing = [f"{r['run']} ({r['state']})" for r in chosen[~chosen["ended"]].to_dict("records")]
    return Points({k: v for k, v in found.items() if k > 0}, found.get(0.0), missing)


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    found = points(runs)
    checks = [uses_attention(found), bends(found), worse_than_bigram(found)]
    logits = ", ".join(f"{k:g}: {short(v)}" for k, v in _logits(runs).items())
    notes = [
        "kappa is the mean square of queries and keys: with scale 1/sqrt(head_dim) logits reach kappa sqrt(head_dim)",
        f"Largest attention logit of the whole run by kappa: {logits or '-'}",
        f"Seeds: {runs['seed'].nunique()}; LR {runs['optimizer.lr'].iloc[0]:g}; the paper's model has 10M parameters",
    ]
    return Verdict(
        "logit_transplant", checks, [*notes, *([f"Missing: {'; '.join(found.missing)}"] if found.missing else [])]
    )


def _logits(runs: pd.DataFrame) -> dict[float, float]:
    ended = runs[runs["ended"] & (runs["model.depth"] > 0)]
    return {float(k): float(v) for k, v in ended.groupby(KAPPA)["logit_max"].median().items()}


def _table(found: Points) -> list[dict[str, float]]:
    return [{"kappa": k, "loss": v.value, "error": v.error} for k, v in found.by_kappa.items()]


def uses_attention(found: Points) -> Check:
    """Passes when the best kappa's loss is below the bigram model's by DEGRADED and two standard errors: else there is
    nothing that large logits could take away."""
    gain = found.bigram - found.best if found.bigram and found.by_kappa else None
    return Check(
        claim="With small logits the model is better than a bigram model",
        passed=gain.above(DEGRADED) if gain and not found.gaps else None,
        numbers={"kappas": _table(found), "bigram": found.bigram and found.bigram.numbers(), "needed": DEGRADED},
        text=found.gaps
        + (f"loss {found.best.value:.3f}, bigram {found.bigram.value:.3f}" if gain and found.bigram else ""),
    )


def bends(found: Points) -> Check:
    """Passes when the loss crosses DEGRADED above its best at a kappa within a factor WITHIN of AROUND; fails when it
    does so elsewhere, or nowhere although kappa goes beyond that."""
    crossing = found.crossing if found.by_kappa else None
    passed = None
    if not found.gaps and found.by_kappa and (crossing or max(found.by_kappa) > AROUND * WITHIN):
        passed = crossing is not None and AROUND / WITHIN <= crossing <= AROUND * WITHIN
    parts = [f"{k:g} {v.value:.3f}" for k, v in found.by_kappa.items()]
    at = f"{crossing:.3g}" if crossing else "none"
    return Check(
        claim=f"Loss deteriorates around kappa = {AROUND:g}",
        passed=passed,
        numbers={"kappas": _table(found), "crossing": crossing, "around": AROUND, "within": WITHIN, "margin": DEGRADED},
        text=f"{found.gaps}{DEGRADED:g} nats above the best at kappa {at}; loss by kappa: {', '.join(parts)}",
    )


def worse_than_bigram(found: Points) -> Check:
    """Passes when at every kappa from WORSE on the loss is above the bigram model's, by two standard errors; fails when
    it surely is not at one of them. None without such a kappa."""
    rows: list[dict[str, Any]] = []
    for kappa, loss in found.by_kappa.items():
        if found.bigram and kappa >= WORSE:
            excess = loss - found.bigram
            rows.append({"kappa": kappa, "excess": excess.value, "error": excess.error, "above": excess.above(0)})
    above = [row["above"] for row in rows]
    passed = False if False in above else True if above and None not in above else None
    parts = [f"kappa {r['kappa']:g} {r['excess']:+.3f} ± {r['error']:.3f} nats" for r in rows]
    return Check(
        claim=f"From kappa = {WORSE:g} on it is worse than a bigram model",
        passed=None if found.gaps else passed,
        numbers={"kappas": rows, "bigram": found.bigram and found.bigram.numbers()},
        text=found.gaps + (f"against the bigram model's: {'; '.join(parts)}" if parts else f"no kappa of {WORSE:g}"),
    )


@styled
def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Loss against kappa with the bigram model's, as in Figure 10, and attention entropy."""
    points(runs)
    figure, (loss, entropy) = panels(2, width=2.9)
    ended = runs[runs["ended"]]
    blocks, bigram = ended[ended["model.depth"] > 0], ended[ended["model.depth"] == 0]["validation/loss"]
    for panel, column in ((loss, "validation/loss"), (entropy, "entropy_final")):
        by_kappa = blocks.groupby(KAPPA)[column]
        panel.plot(by_kappa.median().index, by_kappa.median(), color="#21506e", marker="o", zorder=3)
        panel.plot(blocks[KAPPA], blocks[column], "o", color="#21506e", markersize=2, alpha=0.6)
        panel.set(xscale="log", xlabel="κ, mean square of queries and keys")
    if len(bigram):
        loss.axhline(bigram.median(), color="#b5542b", linestyle="--", linewidth=1)
        loss.annotate("bigram model", (0, bigram.median()), xycoords=("axes fraction", "data"), xytext=(2, 2),
                      textcoords="offset points", color="#b5542b", fontsize=7)  # fmt: skip
    loss.axvline(AROUND, color="0.45", linestyle=":", linewidth=0.9)
    loss.set_ylabel("final validation loss (nats)")
    entropy.set_ylabel("attention entropy (nats)")
    entropy.set_ylim(bottom=0)
    return {"loss_against_kappa": figure}


register(Finding("logit_transplant", CLAIM, SOURCE, judge, draw, minutes=3))
