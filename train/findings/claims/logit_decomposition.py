"""Attention logits taken apart into norms and cosine: Figure E.1 of Wortsman et al. 2023, on the runs of qk_norm.

For one pair logit = |q| |k| cos / sqrt(d_h). The probes give block 0's largest logit, the norms of queries and keys as
means over tokens and heads, and the mean over heads of the cosine of each head's largest pair. Their product misses the
logit by what the largest pair's norms have over the mean ones, so the parts of its growth don't add up: the rest is
shown.

Thresholds were set with the mini sweep of 2026-11-21 (one seed) in view, but before this code had judged it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.findings.arms import Arms
from train.findings.base import Finding, register
from train.findings.claims.qk_norm import pair
from train.findings.lr_figures import lr_legend, lr_shades
from train.findings.probes import series
from train.results.style import colours, legend_above, panels, styled
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = "Attention logits grow because the norms of queries and keys grow, not because queries and keys align."
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), Figure E.1"

NAME = "logit_decomposition"
GROWN = 10.0
"""Factor by which a run's largest logit must have grown for its growth to be taken apart: logits of 5 at the start are
then above 50. Learning to attend at all brings a few times less than that, and that may well be the cosine."""
NORMS_SHARE = 0.5
"""Of the growth in log, what the norms must account for at the least."""
COSINE_SHARE = 0.25
"""And what the cosine may account for at the most. Set with one sweep in view, where it was 0.02 to 0.12."""
FOLLOWS = 0.9
"""Correlation over a run's watched steps between log logit and log of the product of norms."""
PARTS = ("logit_max", "q_norm", "k_norm", "cosine_of_max_pair")


def parts_of(rows: pd.DataFrame) -> pd.DataFrame | None:
    """Logarithms of block 0's largest logit and of what it is made of, by step; None where a run lacks any of them."""
    import pandas as pd

    found = pd.DataFrame({name: series(rows, f"attention/block0/{name}") for name in PARTS}).dropna()
    found = found[(found > 0).all(axis=1)]
    if len(found) < 3:
        return None
    logs = np.log(found)
    return pd.DataFrame(
        {"logit": logs["logit_max"], "norms": logs["q_norm"] + logs["k_norm"], "cosine": logs["cosine_of_max_pair"]}
    )


def table(sweep: Arms, metrics: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """For each run without qk-norm whose logits have grown: the parts of the growth to the step of the largest."""
    found = []
    for run in sweep.ended(sweep.names[0]).to_dict("records"):
        logs = parts_of(metrics[run["run"]])
        if logs is None:
            continue
        growth = logs.loc[logs["logit"].idxmax()] - logs.iloc[0]
        if growth["logit"] < np.log(GROWN):
            continue
        total = float(growth["logit"])
        found.append(
            {"N": int(run["size"]), "lr": run["optimizer.lr"], "seed": run["seed"], "factor": float(np.exp(total)),
             "norms": float(growth["norms"]) / total, "cosine": float(growth["cosine"]) / total,
             "rest": 1 - float(growth["norms"] + growth["cosine"]) / total,
             "correlation": float(np.corrcoef(logs["logit"], logs["norms"])[0, 1])}
        )  # fmt: skip
    return found


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = pair(runs, NAME)
    grown = table(sweep, metrics)
    notes = [
        f"Judged over the {len(grown)} runs without qk-norm whose largest logit in block 0 grows by {GROWN:g}x or more",
        "Norms are means over tokens and heads, not those of the largest pair: the parts don't add up to the whole",
    ]
    return Verdict(NAME, [norms(sweep, grown), cosine(sweep, grown), follows(sweep, grown)], notes + sweep.notes())


def norms(sweep: Arms, grown: list[dict[str, Any]]) -> Check:
    """Passes when in every run the norms' growth is at least NORMS_SHARE of the logit's, in log: more than all else."""
    gaps, shares = sweep.gaps(sweep.names[0]), [run["norms"] for run in grown]
    return Check(
        claim="Query and key norms account for most of the growth of block 0's largest logit",
        passed=min(shares) >= NORMS_SHARE if shares and not gaps else None,
        numbers={"runs": grown, "needed_share": NORMS_SHARE},
        text=f"{gaps}{_range(shares)} of the growth in log",
    )


def cosine(sweep: Arms, grown: list[dict[str, Any]]) -> Check:
    """Passes when in every run the cosine's growth is at most COSINE_SHARE of the logit's, in log."""
    gaps, shares = sweep.gaps(sweep.names[0]), [run["cosine"] for run in grown]
    return Check(
        claim="The cosine of the largest pair accounts for little of it",
        passed=max(shares) <= COSINE_SHARE if shares and not gaps else None,
        numbers={"largest": max(shares, default=None), "allowed_share": COSINE_SHARE},
        text=f"{gaps}{_range(shares)}; neither: {_range([run['rest'] for run in grown])}",
    )


def follows(sweep: Arms, grown: list[dict[str, Any]]) -> Check:
    """Passes when in every run log logit and log |q| |k| are correlated by FOLLOWS over time: the same curve."""
    gaps, values = sweep.gaps(sweep.names[0]), [run["correlation"] for run in grown]
    return Check(
        claim="Over a run, the logit follows the product of the norms",
        passed=min(values) >= FOLLOWS if values and not gaps else None,
        numbers={"smallest": min(values, default=None), "needed": FOLLOWS},
        text=f"{gaps}correlation in log {_range(values)}",
    )


def _range(values: list[float]) -> str:
    if not values:
        return "no run with grown logits"
    return f"{np.median(values):.2f} (median; {min(values):.2f} to {max(values):.2f} over {len(values)} runs)"


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Figure E.1's quantities in time, without qk-norm and at all LRs of the largest size, and their growth per run."""
    sweep = pair(runs, NAME)
    figures = {}
    done = [n for n in sweep.sizes() if len(sweep.ended(sweep.names[0], n))]
    if done:
        figures["norms_and_cosine_in_time"] = _in_time(sweep, metrics, done[-1])
    if grown := table(sweep, metrics):
        figures["growth_by_parts"] = _by_parts(grown)
    return figures


@styled
def _in_time(sweep: Arms, metrics: Mapping[str, pd.DataFrame], n: int) -> Figure:
    rows = sweep.ended(sweep.names[0], n)
    rows = rows[rows["seed"] == rows["seed"].min()].sort_values("optimizer.lr")
    figure, axes = panels(4, width=1.95)
    shades = lr_shades(rows["optimizer.lr"].tolist())
    for run, lr in zip(rows["run"], rows["optimizer.lr"], strict=True):
        for panel, name in zip(axes, PARTS, strict=True):
            values = series(metrics[run], f"attention/block0/{name}")
            panel.plot(values.index, values, color=shades[lr])
    labels = ("max attention logit", "query norm", "key norm", "cosine of largest pair")
    for panel, label in zip(axes, labels, strict=True):
        panel.set(xlabel="step", title=label, yscale="log")
    axes[3].set(yscale="linear", ylim=(0, 1.02))
    axes[2].set_ylim(axes[1].get_ylim())
    lr_legend(figure, shades, f"block 0, no qk-norm, N = {size_label(n)}; peak learning rate")
    return figure


@styled
def _by_parts(grown: list[dict[str, Any]]) -> Figure:
    figure, axes = panels(3)
    shades = colours([run["N"] for run in grown])
    for panel, part in zip(axes, ("norms", "cosine", "rest"), strict=True):
        for run in grown:
            total = np.log(run["factor"])
            panel.plot(total, run[part] * total, "o", color=shades[run["N"]])
        limit = 1.08 * max(np.log(run["factor"]) for run in grown)
        panel.plot([0, limit], [0, limit], color="0.45", linestyle=":", linewidth=0.9, zorder=1)
        panel.set(xlim=(0, limit), ylim=(-0.1 * limit, limit), xlabel="growth of log max logit, block 0")
    titles = (
        "of the query norm × the key norm",
        "of the cosine of the largest pair",
        "neither: outliers in norm",
    )
    for panel, title in zip(axes, titles, strict=True):
        panel.set_title(title)
    axes[0].set_ylabel("growth of log")
    legend_above(figure, shades, {})
    return figure


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=11))
