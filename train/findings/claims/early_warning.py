"""What tells early of runs that break: probes at a tenth and a quarter of the run, on the runs of qk_norm without it.

That the RMS of updates does is held to follow from Wortsman et al. 2023b, who see it rise 1 to 8 steps before loss
spikes; that attention logits do from Wortsman et al. 2023. Here a run breaks when it degrades
(`train.results.sensitivity.DEGRADED`): slow divergence, no spikes, and probes are taken every few steps only.

Thresholds were set with the mini sweep of 2026-11-21 (one seed) in view, but before this code had judged it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.findings.arms import Arms
from train.findings.base import Finding, register
from train.findings.claims.qk_norm import pair
from train.findings.probes import auc, departure, first_step, labelled, loss_difference, series
from train.results.style import LOGIT_LABEL, panels, styled
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = "Attention logits and the RMS of updates rise before the loss does, and tell early of runs that will break."
SOURCE = (
    "Wortsman et al. 2023 (arXiv 2309.14322), section 3.3, for logits; Wortsman et al. 2023b (arXiv 2304.13013), "
    "section 3, for the RMS of updates"
)

NAME = "early_warning"
EARLY = (0.1, 0.25)
"""Shares of the run at which probes are read."""
WINDOW = 0.05
"""Share of the run before that over which they are averaged; nothing later is used."""
GOOD = 0.9
"""Area under the ROC curve from which a probe counts as a warning; 0.5 is chance."""
SHARE = 0.75
"""Of the degraded runs, those in which the logits must pass before the loss departs."""
LEAST_RUNS = 5
"""Degraded and other runs, each, below which nothing is decided."""

LOGIT = "max logit, block 0"
UPDATE = "update RMS, largest tensor"


def _column(name: str, sign: float = 1.0) -> Callable[[pd.DataFrame], pd.Series]:
    return lambda rows: sign * series(rows, name)


def largest_update(rows: pd.DataFrame) -> pd.Series:
    """The largest update RMS of any tensor, by step."""
    import pandas as pd

    names = [c for c in rows if c.startswith("update/") and c.endswith("/rms")]
    return pd.DataFrame({c: series(rows, c) for c in names}).max(axis=1).dropna() if names else pd.Series(dtype=float)


def _last_block(rows: pd.DataFrame) -> pd.Series:
    blocks = [int(c.split("/")[1].removeprefix("block")) for c in rows if c.startswith("residual/block")]
    return series(rows, f"residual/block{max(blocks, default=0)}/rms")


PROBES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    LOGIT: _column("attention/block0/logit_max"),
    "low attention entropy": _column("attention/entropy", -1.0),
    UPDATE: largest_update,
    "update RMS, embedding": _column("update/embedding/rms"),
    "gradient norm": _column("gradient/norm"),
    "residual RMS, last block": _last_block,
    "training loss": _column("train/loss"),
}


def read(values: pd.Series, at: float, steps: int) -> float:
    """A probe's mean over the WINDOW that ends at the share `at` of the run."""
    last = at * (steps - 1)
    return float(values[(values.index <= last) & (values.index > last - WINDOW * steps)].mean())


def table(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, dict[float, float | None]]:
    """AUC of degraded against other runs of all sizes and LRs, by probe and share of the run; the LR itself too."""
    bad = runs["degraded"].astype(bool).to_numpy()
    found: dict[str, dict[float, float | None]] = {}
    for name, probe in PROBES.items():
        all_values = [probe(metrics[run]) for run in runs["run"]]
        found[name] = {}
        for at in EARLY:
            taken = [read(v, at, int(s)) for v, s in zip(all_values, runs["steps"], strict=True)]
            # A run that has gone to NaN by then gives the clearest warning of all.
            value = np.nan_to_num(np.asarray(taken, dtype=float), nan=np.inf)
            found[name][at] = auc(value[bad].tolist(), value[~bad].tolist())
    lrs = runs["optimizer.lr"].to_numpy(dtype=float)
    found["learning rate"] = dict.fromkeys(EARLY, auc(lrs[bad].tolist(), lrs[~bad].tolist()))
    return found


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = pair(runs, NAME)
    known = labelled(sweep, sweep.names[0])
    scores = table(known, metrics)
    checks = [
        tells(sweep, known, scores, LOGIT),
        tells(sweep, known, scores, UPDATE),
        before_loss(sweep, known, metrics),
    ]
    notes = [_ranking(scores, at) for at in EARLY if scores[LOGIT][at] is not None]
    notes.append(
        "An AUC over all sizes and LRs asks for one threshold that fits all; within a size the LR alone separates"
    )
    return Verdict(NAME, checks, notes + sweep.notes())


def _ranking(scores: Mapping[str, Mapping[float, float | None]], at: float) -> str:
    ranked = sorted(scores, key=lambda name: -(scores[name][at] or 0.0))
    return f"AUC at {at:.0%} of the run: " + ", ".join(f"{name} {scores[name][at] or 0.0:.2f}" for name in ranked)


def tells(
    sweep: Arms, known: pd.DataFrame, scores: Mapping[str, Mapping[float, float | None]], probe: str
) -> Check:  # fmt: skip
    """Passes when the probe at a tenth of the run tells degraded from other runs with an AUC of GOOD or more, and
    better than the training loss does by then. None with fewer than LEAST_RUNS of either."""
    at = EARLY[0]
    gaps, found, loss = sweep.gaps(sweep.names[0]), scores[probe][at], scores["training loss"][at]
    bad = int(known["degraded"].astype(bool).sum())
    enough = min(bad, len(known) - bad) >= LEAST_RUNS and not gaps
    if found is None or loss is None:
        text = "no runs of both kinds"
    else:
        lr = scores["learning rate"][at]
        counts = f"{bad} of {len(known)} runs degrade"
        text = f"AUC {found:.2f}, training loss {loss:.2f}, learning rate alone {lr:.2f} ({counts})"
    return Check(
        claim=f"At {at:.0%} of the run {probe} tells which runs will degrade, and better than the loss",
        passed=found >= GOOD and found > loss if enough and found is not None and loss is not None else None,
        numbers={"auc": {name: dict(values) for name, values in scores.items()}, "needed": GOOD, "degraded": bad,
                 "runs": len(known)},
        text=gaps + text,
    )  # fmt: skip


def leads(known: pd.DataFrame, metrics: Mapping[str, pd.DataFrame], probe: str) -> list[dict[str, Any]]:
    """For each degraded run the first step at which the probe is above what any other run ever has, and the step from
    which the loss departs from the run of the best LR."""
    bad = known["degraded"].astype(bool)
    level = max((float(PROBES[probe](metrics[run]).max()) for run in known[~bad]["run"]), default=np.inf)
    found = []
    for run in known[bad].to_dict("records"):
        values = PROBES[probe](metrics[run["run"]])
        gone = departure(loss_difference(metrics[run["run"]], metrics[run["reference"]]))
        found.append(
            {"N": int(run["size"]), "lr": run["optimizer.lr"], "seed": int(run["seed"]), "level": level,
             "alarm": first_step(values, values > level), "departure": gone}
        )  # fmt: skip
    return found


def before_loss(sweep: Arms, known: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Check:
    """Passes when in at least SHARE of the degraded runs block 0's logits are above what any other run ever reaches, a
    threshold without false alarms, before the loss departs from that of the run of the best LR."""
    gaps, found = sweep.gaps(sweep.names[0]), leads(known, metrics, LOGIT)

    def early(one: Mapping[str, Any]) -> bool:
        return one["alarm"] is not None and (one["departure"] is None or one["alarm"] < one["departure"])

    first, updates = sum(map(early, found)), sum(map(early, leads(known, metrics, UPDATE)))
    late = [f"N={size_label(one['N'])} LR {one['lr']:g}" for one in found if not early(one)]
    level = f", level {found[0]['level']:.3g}" if found else ""
    return Check(
        claim="In degraded runs the logits pass all that other runs ever reach before the loss departs",
        passed=first >= SHARE * len(found) if len(found) >= LEAST_RUNS and not gaps else None,
        numbers={"runs": found, "early": first, "early_by_updates": updates, "needed_share": SHARE},
        text=f"{gaps}{first} of {len(found)} runs{level}; by update RMS {updates}"
        + (f"; not in {', '.join(late)}" if late else ""),
    )


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """AUC of every probe, and logits, updates and loss of degraded and other runs in time."""
    sweep = pair(runs, NAME)
    known = labelled(sweep, sweep.names[0])
    bad = known["degraded"].astype(bool)
    if not bad.any() or bad.all():
        return {}
    return {"auc_of_probes": _scores(table(known, metrics)), "probes_in_time": _in_time(known, metrics)}


@styled
def _scores(scores: Mapping[str, Mapping[float, float | None]]) -> Figure:
    figure, (axes,) = panels(1, width=4.2)
    names = sorted(scores, key=lambda name: scores[name][EARLY[0]] or 0.0)
    for at, marker, colour in zip(EARLY, ("o", "D"), ("#21506e", "#b5542b"), strict=True):
        axes.plot([scores[n][at] or np.nan for n in names], range(len(names)), marker, color=colour, markersize=4.5,
                  label=f"at {at:.0%} of the run")  # fmt: skip
    axes.axvline(0.5, color="0.45", linestyle=":", linewidth=0.9)
    axes.set(xlim=(0, 1.03), xlabel="AUC, degraded against other runs")
    axes.set_yticks(range(len(names)), names)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def _in_time(known: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Figure:
    from matplotlib.lines import Line2D

    figure, axes = panels(3)
    kinds = {True: ("#b5542b", "degraded at its end"), False: ("#7f98a8", "others")}
    for run in known.sort_values("degraded").to_dict("records"):
        rows, colour = metrics[run["run"]], kinds[bool(run["degraded"])][0]
        gap = loss_difference(rows, metrics[run["reference"]])
        for panel, values in zip(axes, (PROBES[LOGIT](rows), PROBES[UPDATE](rows), gap), strict=True):
            shown = values[np.isfinite(values)]
            panel.plot(shown.index, shown, color=colour, linewidth=0.9, zorder=3 if run["degraded"] else 2)
    for panel, label in zip(axes, (f"{LOGIT_LABEL}, block 0", UPDATE, "loss over the best LR's (nats)"), strict=True):
        panel.set(xlabel="step", ylabel=label)
        for at in EARLY:
            panel.axvline(at * float(known["steps"].max()), color="0.45", linestyle=":", linewidth=0.9, zorder=1)
    axes[0].set_yscale("log")
    handles = [Line2D([], [], color=colour, label=label) for colour, label in kinds.values()]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=11))
