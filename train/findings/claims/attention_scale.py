"""Attention logits times 1/head_dim in place of 1/sqrt(head_dim): Figure E.6 of Wortsman et al. 2023."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from train.cli.format import size_label
from train.findings.arm_figures import arms_by_size
from train.findings.arms import Arms, arms, pm
from train.findings.base import Finding, register
from train.findings.trends import Value, all_of, best_loss, mean, over_n, spread
from train.results.figures import against_size
from train.results.verdict import Check, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CLAIM = (
    "An attention scale of 1/head_dim makes the best loss slightly lower in the smallest model and slightly higher in "
    "the largest, and doesn't replace qk-layernorm."
)
SOURCE = "Wortsman et al. 2023 (arXiv 2309.14322), Figure E.6"
ARMS = ROOT, FULL, ROOT_NONE, FULL_NONE = ("1/sqrt(d)", "1/d", "1/sqrt(d), no qk-norm", "1/d, no qk-norm")
SLIGHT = 0.1
"""Nats up to which a change of the best loss is slight: less than what counts as degraded."""


def judge(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> Verdict:
    sweep = arms("attention_scale", runs, ARMS)
    sizes = sweep.sizes()
    small = (
        f"The ladder spans {size_label(sizes[0])} to {size_label(sizes[-1])}, the paper's begins at 2.4M: at which "
        "size the gain turns into a loss is not judged, only that it shrinks"
    )
    return Verdict("attention_scale", [growing(sweep), slight(sweep), needs_norm(sweep)], [small, *sweep.notes()])


def changes(sweep: Arms) -> dict[int, Value]:
    """Best loss with 1/head_dim less that with 1/sqrt(head_dim), both with qk-norm, by N."""
    found = sweep.together(ROOT, FULL)
    return {n: mean(sweep, full, best_loss) - mean(sweep, root, best_loss) for n, (root, full) in found}


def growing(sweep: Arms) -> Check:
    """Passes when the change of the best loss by 1/head_dim is higher at the largest size than at the smallest, by two
    standard errors: a gain that turns into a loss. Fails when lower by as much; open in between."""
    by_n, gaps = changes(sweep), sweep.gaps(ROOT, FULL)
    growth = by_n[max(by_n)] - by_n[min(by_n)] if len(by_n) > 1 else None
    parts = [f"N={size_label(n)} {value}" for n, value in by_n.items()]
    return Check(
        claim="What 1/head_dim does to the best loss gets worse with N",
        passed=growth.above(0) if growth and not gaps else None,
        numbers={"change": {n: v.numbers() for n, v in by_n.items()}, "growth": growth and growth.numbers()},
        text=f"{gaps}change of the best loss at {'; '.join(parts) or '-'}{f'; growth {growth}' if growth else ''} nats",
    )


def slight(sweep: Arms) -> Check:
    """Passes when the best loss changes by less than SLIGHT at every size and two standard errors don't reach that;
    fails when it surely changes by more. Open without several seeds of any curve, as the errors are guesses then."""
    by_n, gaps = changes(sweep), sweep.gaps(ROOT, FULL)
    noise = spread(sweep, best_loss)
    passed = None if gaps or noise is None else all_of(abs(value).below(SLIGHT) for value in by_n.values())
    largest = max(by_n.values(), key=lambda value: abs(value.value), default=None)
    return Check(
        claim=f"1/head_dim changes the best loss with qk-norm by less than {SLIGHT:g} nats",
        passed=passed,
        numbers={"change": {n: v.numbers() for n, v in by_n.items()}, "tolerance": SLIGHT, "spread": noise},
        text=f"{gaps}largest change {largest or '-'} nats; "
        + ("no curve has several seeds" if noise is None else f"best losses differ by {noise:.3f} nats between seeds"),
    )


def needs_norm(sweep: Arms) -> Check:
    """Passes when, at every size, LR sensitivity with 1/head_dim is higher without qk-norm than with it, by what
    `Arms.needed` asks for. The largest logits are in `numbers`."""
    sizes: list[dict[str, Any]] = []
    for n, (with_, without) in sweep.together(FULL, FULL_NONE):
        difference, needed = without.mean - with_.mean, sweep.needed(without, with_)
        sizes.append(
            {"N": n, "with": with_.mean, "std_with": with_.std, "without": without.mean, "std_without": without.std,
             "difference": difference, "needed_difference": needed, "higher": difference > needed,
             "logit_max": {arm: float(sweep.ended(arm, n)["logit_max"].max()) for arm in (ROOT_NONE, FULL_NONE)}}
        )  # fmt: skip
    gaps = sweep.gaps(FULL, FULL_NONE)
    parts = [
        f"N={size_label(s['N'])} {pm(s['without'], s['std_without'])} against {pm(s['with'], s['std_with'])} nats "
        f"(largest logit {s['logit_max'][FULL_NONE]:.2g}, with 1/sqrt(head_dim) {s['logit_max'][ROOT_NONE]:.2g})"
        for s in sizes
    ]
    return Check(
        claim="With 1/head_dim, LR sensitivity is still higher without qk-norm at every size",
        passed=None if gaps or not sizes else all(s["higher"] for s in sizes),
        numbers={"sizes": sizes},
        text=f"{gaps}without against with: {'; '.join(parts) or '-'}",
    )


def draw(runs: pd.DataFrame, metrics: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Figure E.6: loss against LR at each size, LR sensitivity and the best loss against N."""
    sweep = arms("attention_scale", runs, ARMS)
    best = {arm: over_n(sweep, arm, best_loss) for arm in ARMS}
    return {
        "loss_and_sensitivity": arms_by_size(sweep),
        "best_loss": against_size({"best loss (nats)": best}, linear=["best loss (nats)"]),
    }


register(Finding("attention_scale", CLAIM, SOURCE, judge, draw, minutes=10, group="slow"))
