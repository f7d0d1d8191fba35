"""muParam in three grades: Figures 8, E.4 and E.5 of Wortsman et al. 2023.

The base width is that of the smallest model, where the grades differ from the standard in their initial values at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from conf.axis import ConfigError
from train.cli.format import size_label
from train.findings.arms import Arms, arms
from train.findings.base import Finding, register
from train.findings.trends import (
    Value,
    all_of,
    best_loss,
    in_order,
    mean,
    optima_over_n,
    over_n,
    sensitivity,
    spread,
    steadier_optimum,
    steady_optimum,
)
from train.results.figures import against_size, loss_against_lr
from train.results.sensitivity import DEGRADED, LRSensitivity
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = (
    "muParam keeps the optimal learning rate where it is as width grows, with and without qk-layernorm; it lowers "
    "neither loss nor LR sensitivity and doesn't replace qk-layernorm; in full and with qk-layernorm it trains at LR 1."
)
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), section 3.2.4, Figures 8, E.4 and E.5"
STANDARD, SIMPLE, INTERMEDIATE, FULL = "standard", "simple", "intermediate", "full"
STANDARD_NONE, SIMPLE_NONE, FULL_NONE = "standard, no qk-norm", "simple, no qk-norm", "full, no qk-norm"
ARMS = (STANDARD, SIMPLE, INTERMEDIATE, FULL, STANDARD_NONE, SIMPLE_NONE, FULL_NONE)
NO_GAIN = 0.05
"""Nats of loss or sensitivity up to which a gain is none: half of what counts as degraded, and what rounding alone does
to a sensitivity at this scale."""
LARGE_LR = 1.0


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = arms("muparam", runs, ARMS)
    checks = [
        steadier_optimum("With qk-norm, the optimal LR moves less with N under muParam", sweep, STANDARD, SIMPLE),
        steady_optimum("With qk-norm, the optimal LR stays put under muParam", sweep, SIMPLE),
        steadier_optimum("Without it too the optimal LR moves less under muParam", sweep, STANDARD_NONE, SIMPLE_NONE),
        no_gain("muParam lowers neither loss nor LR sensitivity", sweep, STANDARD, SIMPLE, largest=False),
        needs_norm(sweep),
        trains_at_one(sweep),
        no_gain("At the largest size, full muParam lowers the best loss no further", sweep, SIMPLE, FULL, largest=True),
    ]
    note = "No run ends above its loss at initialisation in small models: at LR 1, degraded stands for diverged"
    return Verdict("muparam", checks, ["muParam is its simple form where no other is named", note, *sweep.notes()])


def no_gain(claim: str, sweep: Arms, before: str, after: str, largest: bool) -> Check:
    """Passes when going from one arm to the other lowers the best loss (and, unless `largest`, LR sensitivity) by less
    than NO_GAIN at every size (or the largest) and two standard errors don't reach that; fails when it surely lowers it
    by more.

    Over the LRs that both have. Open without several seeds of any curve, as the errors are guesses then.
    """
    numbers: dict[str, Callable[[LRSensitivity], float]] = {"loss": best_loss, "sensitivity": sensitivity}
    measures = {"loss": best_loss} if largest else numbers
    found = sweep.together(before, after)[-1 if largest else 0 :]
    gains: list[tuple[int, str, Value]] = [
        (n, name, mean(sweep, a, of) - mean(sweep, b, of)) for n, (a, b) in found for name, of in measures.items()
    ]
    noise = {name: spread(sweep, of) for name, of in measures.items()}
    gaps = sweep.gaps(before, after)
    known = not gaps and None not in noise.values()
    parts = [f"N={size_label(n)} {name} {gain}" for n, name, gain in gains]
    return Check(
        claim=claim,
        passed=all_of(gain.below(NO_GAIN) for _, _, gain in gains) if known else None,
        numbers={"gains": [{"N": n, "of": name, **gain.numbers()} for n, name, gain in gains],
                 "tolerance": NO_GAIN, "spread": noise},
        text=f"{gaps}{before} less {after}: {'; '.join(parts) or '-'} nats"
        + ("" if None not in noise.values() else "; no curve has several seeds"),
    )  # fmt: skip


def needs_norm(sweep: Arms) -> Check:
    """Passes when, at every size, LR sensitivity under muParam (simple) is higher without qk-norm than with it by what
    `Arms.needed` asks for, over the LRs that both have."""
    sizes: list[dict[str, Any]] = []
    for n, (with_, without) in sweep.together(SIMPLE, SIMPLE_NONE):
        difference, needed = without.mean - with_.mean, sweep.needed(without, with_)
        sizes.append(
            {"N": n, "with": with_.mean, "without": without.mean, "difference": difference, "needed_difference": needed,
             "higher": difference > needed}
        )  # fmt: skip
    gaps = sweep.gaps(SIMPLE, SIMPLE_NONE)
    parts = [f"N={size_label(s['N'])} {s['without']:.3f} against {s['with']:.3f}" for s in sizes]
    return Check(
        claim="Under muParam (simple), LR sensitivity is still higher without qk-norm at every size (Figure E.4)",
        passed=None if gaps or not sizes else all(s["higher"] for s in sizes),
        numbers={"sizes": sizes},
        text=f"{gaps}without against with: {'; '.join(parts) or '-'} nats",
    )


def trains_at_one(sweep: Arms) -> Check:
    """Passes when no run of full muParam with qk-norm degrades at LARGE_LR: its loss there is at most DEGRADED above
    the best of its curve. The paper's runs that fail there diverge, which small models don't."""
    rows: list[dict[str, Any]] = []
    for (n, arm), curve in sweep.curves.items():
        for seed, one in curve.by_seed.items() if arm == FULL else ():
            above = {lr: loss - one.best_loss for lr, loss in zip(one.lrs, one.losses, strict=True)}
            if LARGE_LR in above:
                diverged = one.first_diverging_lr is not None and one.first_diverging_lr <= LARGE_LR
                rows.append({"N": n, "seed": seed, "above_best": above[LARGE_LR], "diverged": diverged})
    if not rows and not sweep.gaps(FULL):
        raise ConfigError(f"finding muparam needs runs of {FULL} at LR {LARGE_LR:g}: run it with experiment=muparam")
    gaps = sweep.gaps(FULL)
    parts = [f"N={size_label(r['N'])} {r['above_best']:.3f}" for r in rows]
    return Check(
        claim="With qk-norm, full muParam trains at LR 1 without degrading (Figure E.5)",
        passed=None if gaps else all(r["above_best"] <= DEGRADED for r in rows),
        numbers={"runs": rows, "margin": DEGRADED},
        text=f"{gaps}{sum(r['diverged'] for r in rows)} of {len(rows)} runs diverge; above the curve's best loss by "
        f"{'; '.join(parts) or '-'} nats",
    )


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Figures 8, E.4 and E.5: loss against LR for each arm; the optimal LR, best loss and LR sensitivity against N."""
    sweep = arms("muparam", runs, ARMS)
    with_norm, shown = (STANDARD, SIMPLE, INTERMEDIATE, FULL), (STANDARD, SIMPLE, STANDARD_NONE)
    return {
        "loss_against_lr": loss_against_lr(in_order(sweep)),
        "over_size": against_size(
            {"optimal LR": optima_over_n(sweep, STANDARD, SIMPLE, STANDARD_NONE, SIMPLE_NONE),
             "best loss (nats)": {arm: over_n(sweep, arm, best_loss) for arm in with_norm},
             "LR sensitivity (nats)": {arm: over_n(sweep, arm, sensitivity) for arm in shown}},
            linear=["best loss (nats)"],
        ),
    }  # fmt: skip


register(Finding("muparam", CLAIM, SOURCE, judge, draw, minutes=32, group="slow"))
