"""Whether a sweep is fit for judging: a claim about a mechanism says nothing of models that don't use it.

The floors of the loss, in nats a token, come from the summaries of runs: of a unigram and a bigram model of the
training tokens, and of the model without token mixing. The last is the bigram floor, as such a model sees one token;
for data with answers both are the entropy of an answer. Only an arm without token mixing makes a second check of it.
"""

from __future__ import annotations

import math

import numpy as np

from train.cli.format import size_label
from train.findings.arms import Arms
from train.results.verdict import Fitness

UNIGRAM, BIGRAM, NO_MIXING = "floor/unigram", "floor/bigram", "floor/no_mixing"
MARGIN = 0.4
"""Nats by which the best loss must lie below the bigram floor, and below the model without token mixing. In a regime
where attention pays both are 0.6 and more; at 400 steps of BPE-2048 the first was below zero."""
TRAINED = 0.3
"""Nats above the best loss at which the lowest LR of the grid may end: beyond, it has hardly been trained, and an LR
sensitivity measures how slowly a run gets going. At 4,000 steps of bytes it is 0.25 for a third of the best LR."""


def floors(sweep: Arms) -> dict[str, float]:
    """Returns the floors that the ended runs know, by name; the median where runs differ."""
    ended = sweep.runs[sweep.runs["ended"]]
    found = {name: ended[name].astype(float).median() for name in (UNIGRAM, BIGRAM, NO_MIXING) if name in ended}
    return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def fitness(sweep: Arms, baseline: str, no_mixing: str | None = None, needed: bool = True) -> Fitness:
    """Judges (a) the baseline's best loss against the bigram floor, (b) against an arm without token mixing, or the
    floor of one where that is not the bigram's, (c) the lowest LR of its grid against its best loss; at every size."""
    known, faults, facts = floors(sweep), [], []
    curves = {n: curve for (n, arm), curve in sweep.curves.items() if arm == baseline}
    best = {n: float(np.mean([one.best_loss for one in curve.by_seed.values()])) for n, curve in curves.items()}
    if not best:
        return Fitness([f"no complete curve of the baseline, {baseline}"], [], needed)
    other = [
        float(np.mean([one.best_loss for one in curve.by_seed.values()]))
        for (_, arm), curve in sweep.curves.items() if arm == no_mixing
    ]  # fmt: skip
    unmixed = min(other) if other else known.get(NO_MIXING)
    levels = [("the bigram floor", BIGRAM, known.get(BIGRAM)), ("the model without token mixing", NO_MIXING, unmixed)]
    if not other and unmixed is not None and unmixed == known.get(BIGRAM):
        del levels[1]
        facts.append("no arm without token mixing, whose floor is the bigram's: one check, not two")
    for what, name, level in levels:
        if level is None:
            faults.append(f"{name} is not in the summaries of the runs")
            continue
        low = [f"N={size_label(n)} {level - loss:+.2f}" for n, loss in best.items() if level - loss < MARGIN]
        gain = f"{min(level - loss for loss in best.values()):.2f} nats below {what}"
        faults += [f"not {MARGIN:g} nats below {what} ({level:.3f}): {', '.join(low)}"] if low else []
        facts += [] if low else [f"best losses are {gain} ({level:.3f}) or more"]
    starts = {
        n: float(np.mean([one.losses[0] - one.best_loss for one in curve.by_seed.values()]))
        for n, curve in curves.items()
    }
    slow = [f"N={size_label(n)} {above:.2f} above the best" for n, above in starts.items() if above > TRAINED]
    if slow:
        faults.append(f"the lowest LR is hardly trained, more than {TRAINED:g} nats above the best: {', '.join(slow)}")
    else:
        facts.append(f"the lowest LR ends within {TRAINED:g} nats of the best")
    return Fitness(faults, facts, needed)
