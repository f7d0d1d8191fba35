"""Measurements of their own, each both ways: what comes first, what logits grow by."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from tests.train.findings.frames import frame
from tests.train.findings.probe_frames import STEPS, sweep
from train.findings.arms import arms
from train.findings.base import find
from train.findings.quantities import Metric, values

SEEDS = (0, 1, 2)


def claims_of(name, runs, metrics):
    return find(name).verdict(runs, metrics)


def word(name, runs, metrics, i=0):
    return claims_of(name, runs, metrics).checks[i].word[0]


def breaking(mark, gone, column="attention/entropy", low=0.05, high=1.0):
    """Runs at the largest LR pass a mark at one step, and leave the loss of the others at another."""

    def of(arm, n, lr, seed):
        bad = lr > 0.05

        def probe(step):
            return low if bad and mark is not None and step >= mark else high

        return {column: probe, "train/loss": lambda step: 6.0 if bad and gone is not None and step >= gone else 5.0}

    return sweep(of, seeds=SEEDS)


@pytest.mark.parametrize(
    ("mark", "gone", "expected"),
    [(10, 60, "reproduced"), (60, 10, "contradicted"), (None, 60, "contradicted"), (10, None, "reproduced")],
)
def test_entropy_collapses_first(mark, gone, expected):
    runs, metrics = breaking(mark, gone)
    assert word("entropy_collapse", runs, metrics) == expected


def test_entropy_falls_one_step_up():
    assert word("entropy_collapse", *breaking(10, 60), i=2) == "reproduced"
    assert word("entropy_collapse", *breaking(10, 60, low=0.9), i=2) == "contradicted"


@pytest.mark.parametrize(("mark", "gone", "expected"), [(10, 60, "reproduced"), (60, 10, "contradicted")])
def test_logits_pass_before_the_loss_departs(mark, gone, expected):
    runs, metrics = breaking(mark, gone, "attention/block0/logit_max", low=1e4, high=10.0)
    assert word("early_warning", runs, metrics, i=4) == expected


def test_early_warning():
    """Runs that break, whose logits are high from the first step or after the reading, at 2.5 % of the run."""
    lrs = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

    def made(at):
        def of(arm, n, lr, seed):
            return {"attention/block0/logit_max": lambda step: 1e3 if lr > 1e-2 and step >= at else 10.0 + seed}

        runs, metrics = sweep(of, lrs=lrs, seeds=SEEDS, losses=lambda arm, n, lr, seed: 5.5 if lr > 1e-2 else 5.01 - lr)
        # A row every 40 steps, so that one lies at 2.5 % of the run.
        later = {name: rows.assign(step=40 * rows["step"] + 5).ffill() for name, rows in metrics.items()}
        return runs.assign(steps=4006), later

    # The loss of these runs tells as much from the first step on.
    runs, metrics = made(0)
    flat = {name: rows.assign(**{"train/loss": 5.0}) for name, rows in metrics.items()}
    assert word("early_warning", runs, flat) == "reproduced"
    assert word("early_warning", runs, metrics) == "not testable at this scale"
    assert word("early_warning", made(50)[0], {n: r.assign(**{"train/loss": 5.0}) for n, r in made(50)[1].items()}) == (
        "not testable at this scale"
    )


@pytest.mark.parametrize(("share", "expected"), [(0.9, "reproduced"), (0.1, "contradicted")])
def test_what_logits_grow_by(share, expected):
    def of(arm, n, lr, seed):
        def grown(part):
            return lambda step: math.exp(math.log(1000) * part * step / (STEPS - 1))

        wobble = 0.01 * seed
        return {
            "attention/block0/logit_max": grown(1), "attention/block0/q_norm": grown((share + wobble) / 2),
            "attention/block0/k_norm": grown((share + wobble) / 2),
            "attention/block0/cosine_of_max_pair": grown(1 - share - wobble),
        }  # fmt: skip

    runs, metrics = sweep(of, seeds=SEEDS)
    found = claims_of("logit_decomposition", runs, metrics)
    assert [check.word[0] for check in found.checks] == [expected, expected, "reproduced"]
    assert found.checks[0].parts[0].numbers["value"] == pytest.approx(share + 0.01, abs=1e-6)


def test_logits_that_do_not_grow_are_not_taken_apart():
    of = {f"attention/block0/{name}": 1.0 for name in ("logit_max", "q_norm", "k_norm", "cosine_of_max_pair")}
    runs, metrics = sweep(lambda *_: of, seeds=SEEDS)
    assert word("logit_decomposition", runs, metrics) == "not testable at this scale"


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ((0.0, 0.05, 0.2), "reproduced"),
        ((0.2, 0.05, 0.0), "contradicted"),
        ((0.1, 0.1, 0.1), "not testable at this scale"),
    ],
)
def test_epsilon(costs, expected):
    rows, metrics = [], {}
    for (i, cost), eps, seed in itertools.product(enumerate(costs), (1e-15, 1e-4, 1e-2), SEEDS):
        size, loss = 1000 * 4**i, 5.0 + cost * (eps == 1e-4) + 0.5 * (eps == 1e-2) + 0.002 * seed
        rows.append({"run": f"{size}-{eps}-{seed}", "arm": f"eps {eps:g}", "size": size, "N": size,
                     "optimizer.lr": 0.3, "seed": seed, "optimizer.eps": eps, "steps": 100, "validation/loss": loss,
                     "validation/loss_final": loss, "validation/loss_init": 8.0, "state": "finished",
                     "ended": True})  # fmt: skip
        metrics[rows[-1]["run"]] = pd.DataFrame(
            {"step": np.arange(100), "update/block0/mlp.up/rms": 1 / (1 + eps / 1e-4)}
        )
    found = claims_of("epsilon", pd.DataFrame(rows), metrics).checks
    assert [check.word[0] for check in found] == [expected, "reproduced", "reproduced"]


@pytest.mark.parametrize(("rise", "expected"), [(0.5, "reproduced"), (0.0, "not testable at this scale")])
def test_early_rise(rise, expected):
    def of(arm, n, lr, seed):
        return {"train/loss": lambda step: 5.0 + (rise + 0.01 * seed) * (arm == "sigmoid, no bias" and step >= 4)}

    runs, metrics = sweep(of, arms=("softmax", "sigmoid", "sigmoid, no bias"), seeds=SEEDS)
    assert word("sigmoid_bias", runs, metrics, i=2) == expected


def test_accuracy_and_the_share_of_solved_runs_are_quantities():
    """Five seeds of an arm that solves the task in four, beside an arm that guesses."""
    losses = {arm: {1000: {0.01: 0.1, 0.03: 0.2}} for arm in ("softmax", "mlp")}
    runs = frame(losses, range(5))
    right = np.where(runs["arm"] == "mlp", 0.01, np.where(runs["seed"] == 0, 0.6, 1.0))
    runs = runs.assign(**{"validation/accuracy": right})
    rows = {
        row["run"]: pd.DataFrame({"step": [-1, 9], "validation/accuracy": [0.0, row["validation/accuracy"]]})
        for row in runs.to_dict("records")
    }
    sweep = arms("mine", runs, ["softmax", "mlp"], rows)
    assert values(sweep, "softmax", "solved", lr=0.01)["value"].mean() == pytest.approx(0.8)
    assert values(sweep, "mlp", "solved")["value"].mean() == 0
    last = Metric(metric="validation/accuracy", at="last", log=False)
    assert values(sweep, "softmax", last, lr=0.03)["value"].tolist() == [0.6, 1, 1, 1, 1]
    assert values(arms("mine", frame(losses), ["softmax", "mlp"]), "softmax", "solved").empty
