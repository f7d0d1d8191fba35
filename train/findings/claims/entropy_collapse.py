"""Attention entropy collapses before the loss breaks: Zhai et al. 2023, on the runs of qk_norm without qk-norm.

Their runs diverge when the LR doubles; ours fall back to what a model can do without attention, so a run that breaks is
one that degrades (`DEGRADED`), held against the run of the best LR at its size and seed. Both see the
same batches, so the difference of their training losses is free of what batches differ in.

The entropy bound of their theorem 3.1 needs the spectral norm of W_K W_Q^T and that of the layer's input, which no
metric has: `python -m train.entropy_bound RUN` takes it from a run's weights.

Thresholds were set with the mini sweep of 2026-11-21 (one seed) in view, but before this code had judged it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from train.cli.format import size_label
from train.findings.arms import Arms
from train.findings.base import Finding, register
from train.findings.claims.qk_norm import pair
from train.findings.lr_figures import lr_legend, lr_shades
from train.findings.probes import at_end, auc, departure, first_step, labelled, loss_difference, series
from train.results.sensitivity import DEGRADED
from train.results.style import colours, legend_above, panels, styled
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = "Where the learning rate is too large attention entropy collapses to near zero, before the loss breaks."
SOURCE = "Zhai et al. 2023 (arXiv 2303.06296), section 1, Figure 2"

NAME = "entropy_collapse"
ENTROPY = "attention/entropy"
COLLAPSED = 0.1
"""Of its value at initialisation, below which the mean entropy over blocks, heads and queries has collapsed."""
SHARE = 0.75
"""Of the degraded runs, those whose entropy must collapse first: chance would be a half."""
SEPARATES = 0.9
"""Area under the ROC curve from which the final entropy tells degraded runs from others."""
HALF = 0.5
"""Of the entropy at the last LR that is not degraded, to which it must fall at the first one that is."""


@dataclass(frozen=True)
class Order:
    """When what happens in a degraded run; None for never."""

    n: int
    lr: float
    seed: int
    collapse: int | None
    departure: int | None

    @property
    def entropy_first(self) -> bool:
        """A loss that never lastingly departs in training, though the run ends degraded, does so after its end."""
        return self.collapse is not None and (self.departure is None or self.collapse < self.departure)


def collapse(rows: pd.DataFrame) -> int | None:
    """The first watched step at which the mean entropy is below COLLAPSED of its first value."""
    entropy = series(rows, ENTROPY)
    return first_step(entropy, entropy < COLLAPSED * entropy.iloc[0]) if len(entropy) else None


def orders(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> list[Order]:
    """Of the degraded ones among `watched.labelled` runs."""
    return [
        Order(int(run["size"]), run["optimizer.lr"], int(run["seed"]), collapse(metrics[run["run"]]),
              departure(loss_difference(metrics[run["run"]], metrics[run["reference"]])))
        for run in runs[runs["degraded"].astype(bool)].to_dict("records")
    ]  # fmt: skip


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = pair(runs, NAME)
    known = labelled(sweep, sweep.names[0])
    entropies = known.assign(entropy=[at_end(metrics[run], ENTROPY) for run in known["run"]])
    checks = [entropy_first(sweep, orders(known, metrics)), goes_with(sweep, entropies), one_step_up(sweep, entropies)]
    notes = [
        f"Collapsed: below {COLLAPSED:g} of the entropy at the first step; departed: {DEGRADED:g} nats above the run "
        "of the best LR for a tenth of the run",
        "Not judged: the entropy bound of theorem 3.1, which needs the weights: python -m train.entropy_bound",
    ]
    return Verdict(NAME, checks, notes + sweep.notes())


def entropy_first(sweep: Arms, found: list[Order]) -> Check:
    """Passes when in at least SHARE of the degraded runs the entropy collapses at an earlier step than that from which
    the loss departs from the run of the best LR. None when no run degrades."""
    gaps, first = sweep.gaps(sweep.names[0]), sum(order.entropy_first for order in found)
    leads = [o.departure - o.collapse for o in found if o.departure is not None and o.collapse is not None]
    late = [
        f"N={size_label(o.n)} LR {o.lr:g} ({_at(o.collapse)}, {_at(o.departure)})" for o in found if not o.entropy_first
    ]
    lead = f"; it leads by {np.median(leads):.0f} steps (median)" if leads else ""
    return Check(
        claim="In runs that degrade, attention entropy collapses before the loss departs from a good run's",
        passed=first >= SHARE * len(found) if found and not gaps else None,
        numbers={"runs": [vars(o) for o in found], "first": first, "of": len(found), "needed_share": SHARE},
        text=f"{gaps}{first} of {len(found)} degraded runs{lead}"
        + (f"; not in {', '.join(late)}" if late else ""),
    )  # fmt: skip


def _at(step: int | None) -> str:
    return "never" if step is None else f"step {step}"


def goes_with(sweep: Arms, runs: pd.DataFrame) -> Check:
    """Passes when over all sizes and LRs the entropy at the end of degraded runs is below that of the others, by an
    area under the ROC curve of SEPARATES."""
    gaps = sweep.gaps(sweep.names[0])
    bad, good = (runs[runs["degraded"].astype(bool) == which]["entropy"].dropna().tolist() for which in (True, False))
    found = auc([-v for v in bad], [-v for v in good])
    ends = f"; degraded up to {max(bad):.3f} nats, others from {min(good):.3f}" if bad and good else ""
    return Check(
        claim="Low attention entropy at the end of a run goes with a degraded loss",
        passed=found >= SEPARATES if found is not None and not gaps else None,
        numbers={"auc": found, "needed": SEPARATES, "degraded": len(bad), "others": len(good)},
        text=f"{gaps}AUC {'-' if found is None else f'{found:.2f}'} ({len(bad)} degraded, {len(good)} others){ends}",
    )


def one_step_up(sweep: Arms, runs: pd.DataFrame) -> Check:
    """Passes when at every size and seed, from the last LR that is not degraded to the next, about twice as large, the
    entropy at the end falls to HALF or less. A curve that never degrades is left out."""
    found: list[dict[str, Any]] = []
    for (n, seed), group in runs.groupby(["size", "seed"]):
        group = group.sort_values("optimizer.lr").reset_index(drop=True)
        at = group.index[group["degraded"].astype(bool)]
        if len(at):
            before, after = group.loc[at[0] - 1], group.loc[at[0]]
            found.append(
                {"N": int(n), "seed": int(seed), "lr": float(after["optimizer.lr"]),
                 "lr_factor": float(after["optimizer.lr"] / before["optimizer.lr"]),
                 "before": float(before["entropy"]), "after": float(after["entropy"])}
            )  # fmt: skip
    gaps = sweep.gaps(sweep.names[0])
    parts = [f"N={size_label(f['N'])} {f['before']:.3f} -> {f['after']:.3f} at LR {f['lr']:g}" for f in found]
    return Check(
        claim="One step up from the last learning rate that trains well, entropy falls to half or less",
        passed=all(f["after"] <= HALF * f["before"] for f in found) if found and not gaps else None,
        numbers={"curves": found, "needed_ratio": HALF},
        text=f"{gaps}{'; '.join(parts) or 'no run degrades'}",
    )


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Entropy and loss in time at every LR of the largest size, as in Zhai et al.'s Figure 2, and which comes first."""
    sweep = pair(runs, NAME)
    known = labelled(sweep, sweep.names[0])
    if known.empty:
        return {}
    figures = {"entropy_and_loss_in_time": _in_time(known, metrics)}
    if found := orders(known, metrics):
        figures["which_comes_first"] = _first(found)
    return figures


@styled
def _in_time(known: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Figure:
    rows = known[(known["size"] == known["size"].max()) & (known["seed"] == known["seed"].min())]
    figure, (entropy, loss) = panels(2, width=3.2)
    shades = lr_shades(rows["optimizer.lr"].tolist())
    for run in rows.to_dict("records"):
        colour, own = shades[run["optimizer.lr"]], metrics[run["run"]]
        values = series(own, ENTROPY)
        entropy.plot(values.index, values, color=colour)
        gap = loss_difference(own, metrics[run["reference"]])
        gap = gap[np.isfinite(gap)]
        loss.plot(gap.index, gap, color=colour)
        marks = (
            (entropy, values, collapse(own), "v"),
            (loss, gap, departure(gap), "o"),
        )
        for panel, line, step, marker in marks if run["degraded"] else ():
            if step is not None:
                panel.plot(step, line[step], marker, color=colour, markeredgecolor="white", markersize=5.5, zorder=5)
    entropy.axhline(
        COLLAPSED * float(series(metrics[rows["run"].iloc[0]], ENTROPY).iloc[0]), color="0.45", ls=":", lw=0.9
    )
    entropy.set(xlabel="step", ylabel="attention entropy (nats)", yscale="log")
    loss.axhline(DEGRADED, color="0.45", linestyle=":", linewidth=0.9)
    loss.set(xlabel="step", ylabel="loss over the best LR's (nats)")
    entropy.set_title("triangles: collapsed")
    loss.set_title("dots: departed")
    lr_legend(figure, shades, f"no qk-norm, N = {size_label(rows['size'].iloc[0])}; peak learning rate")
    return figure


@styled
def _first(found: list[Order]) -> Figure:
    figure, (axes,) = panels(1, width=3.2)
    shades = colours([order.n for order in found])
    shown = [o for o in found if o.collapse is not None and o.departure is not None]
    # Steps start at 0, which a log axis has no place for.
    for order in shown:
        axes.plot((order.collapse or 0) + 1, (order.departure or 0) + 1, "o", color=shades[order.n])
    top = 1.3 * max([max(o.collapse or 0, o.departure or 0) + 1 for o in shown], default=1)
    axes.plot([1, top], [1, top], color="0.45", linestyle=":", linewidth=0.9, zorder=1)
    axes.annotate("entropy first", (0.05, 0.92), xycoords="axes fraction", color="0.35", fontsize=7)
    axes.annotate("loss first", (0.95, 0.05), xycoords="axes fraction", color="0.35", fontsize=7, ha="right")
    axes.set(
        xscale="log", yscale="log", xlim=(0.9, top), ylim=(0.9, top),
        xlabel="step + 1 at which entropy has collapsed", ylabel="step + 1 at which the loss departs",
    )  # fmt: skip
    legend_above(figure, shades, {})
    return figure


register(Finding(NAME, CLAIM, SOURCE, judge, draw, minutes=11))
