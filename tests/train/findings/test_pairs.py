"""Comparisons of two arms run by run, each with its negative control."""

import math

import numpy as np
import pytest

from tests.train.findings.probe_frames import pending, sweep
from train.findings import pairs as p
from train.findings.arms import arms
from train.findings.logit_checks import bears, no_explosion, slower_logits
from train.findings.sink_checks import fewer_sinks

A, B = "softmax", "other"
SIZES = (1000, 4000)


def made(value_of, losses=None, seeds=(0, 1), noise=0.0, gone=None):
    """Two arms whose blocks have the probe `residual/kurtosis`: block 0 what `value_of(arm)` says, block 1 half."""
    random = np.random.default_rng(0)

    def columns(arm, n, lr, seed):
        value = value_of(arm) * math.exp(noise * random.standard_normal())
        return {"residual/block0/kurtosis": value, "residual/block1/kurtosis": value / 2}

    runs, metrics = sweep(columns, sizes=SIZES, seeds=seeds, losses=losses, arms=(A, B))
    return arms("test", runs if gone is None else pending(runs, **gone), (A, B)), metrics


def of(value_of, healthy=True, **how):
    frame, metrics = made(value_of, **how)
    return p.pairs(frame, metrics, A, B, p.largest("residual/kurtosis"), healthy)


def twice(arm):
    return {A: 8.0, B: 2.0}[arm]


def test_pairs_of_runs_that_are_not_degraded():
    found = of(twice)
    assert len(found.values) == 8  # 2 sizes, 2 of 3 LRs, 2 seeds
    assert found.values[0] == {"N": 1000, "lr": 1e-3, "seed": 0, "base": 8.0, "arm": 2.0}
    assert len(of(twice, healthy=False).values) == 12
    assert found.change().numbers() == {"value": pytest.approx(math.log(0.25)), "error": pytest.approx(0, abs=1e-12)}
    assert found.change(log=False).value == -6
    assert found.change(log=False, share=0.5).value == -2
    frame, metrics = made(twice)
    assert p.pairs(frame, metrics, A, B, p.average("residual/kurtosis")).values[0]["base"] == 6.0
    assert p.pairs(frame, metrics, A, B, "validation/loss").values[0]["base"] == 5.2
    lacking = p.pairs(frame, metrics, A, B, p.average("residual/none"))
    assert (list(lacking.values), lacking.without, lacking.change()) == ([], 8, None)


def test_the_error_is_student_s():
    """Of 1, 2, 3, 4: mean 2.5, standard deviation 1.291, t of 3 degrees 3.182: +-2.054."""
    found = p.over([1.0, 2.0, 3.0, 4.0])
    assert (found.value, 2 * found.error) == (2.5, pytest.approx(3.182446 * 1.290994 / 2, rel=1e-6))
    assert p.over([1.0, 2.0, 3.0]) is None
    assert p.over([1.0, 2.0, 3.0, math.inf]) is None


def test_lowered():
    assert p.lowered("", of(twice)).passed is True
    assert p.lowered("", of(twice, noise=0.2)).passed is True
    assert p.lowered("", of(lambda arm: 4.0)).passed is False
    assert p.lowered("", of(lambda arm: {A: 4.0, B: 3.9}[arm])).passed is False
    assert p.lowered("", of(lambda arm: 4.0, noise=0.1)).passed is not True
    assert p.lowered("", of(lambda arm: {A: 2.0, B: 8.0}[arm])).passed is False
    assert p.lowered("", of(twice, noise=3.0)).passed is None
    assert p.lowered("", of(twice, gone={"arm": B, "seed": 1})).passed is None
    assert "0.25x" in p.lowered("", of(twice)).text
    base = of(twice).middle("base")
    assert p.lowered("", of(twice), least=0.99 * base).passed is True
    assert p.lowered("", of(twice), least=base).passed is None


def test_too_few_pairs_stay_open():
    found = of(twice, seeds=(0,), losses=lambda arm, n, lr, seed: 5.0 if lr == 1e-3 else 5.5)
    assert len(found.values) == 2
    assert p.lowered("", found).passed is None
    assert p.moved("", found, -1.0).passed is None
    assert p.not_above("", found, 1.0).passed is None


def test_moved_and_not_above():
    assert p.moved("", of(twice), -5.0).passed is True
    assert p.moved("", of(twice), -7.0).passed is False
    assert p.moved("", of(lambda arm: {A: 1.0, B: 1.5}[arm]), 0.2).passed is True
    assert p.moved("", of(lambda arm: 1.0), 0.2).passed is False
    assert p.moved("", of(lambda arm: 1.0, noise=0.5), 0.2).passed is not True
    assert p.not_above("", of(lambda arm: 1.0), 0.1).passed is True
    assert p.not_above("", of(lambda arm: {A: 1.0, B: 1.5}[arm]), 0.1).passed is False
    assert p.not_above("", of(lambda arm: 1.0, noise=1.0), 0.1).passed is None


def test_fewer_sinks():
    def check(base, arm, share=0.5, **how):
        return fewer_sinks("", of(lambda name: {A: base, B: arm}[name], **how), share).passed

    assert check(0.4, 0.1) is True
    assert check(0.4, 0.0, share=0.02) is True
    assert check(0.4, 0.3) is False
    assert check(0.4, 0.4) is False
    assert check(0.05, 0.0) is None, "there was little to remove"
    assert check(0.05, 0.05) is False


def test_no_worse():
    def check(by, **how):
        def losses(arm, n, lr, seed):
            return {1e-3: 5.2, 1e-2: 5.0, 1e-1: 5.5}[lr] + by * (arm == B)

        frame, _ = made(twice, losses=losses, **how)
        return p.no_worse("", frame, A, B, 0.05)

    assert check(0.0).passed is True
    assert check(-0.3).passed is True
    assert check(0.1).passed is False
    assert check(0.05).passed is None
    assert check(0.0, gone={"arm": B, "size": 1000}).passed is None
    assert check(0.1).numbers["change"][1000]["value"] == pytest.approx(0.1)


class TestLogits:
    """Runs degrade at the third LR."""

    @staticmethod
    def frame(logits, losses=None):
        runs, metrics = sweep(lambda *_: {}, sizes=SIZES, seeds=(0, 1), losses=losses, arms=(A, B))
        at = {1e-3: 0, 1e-2: 1, 1e-1: 2}
        values = [logits[arm][at[lr]] for arm, lr in zip(runs["arm"], runs["optimizer.lr"], strict=True)]
        return arms("test", runs.assign(logit_max=values), (A, B)), metrics

    def test_lower_logits(self):
        lower = self.frame({A: (10, 100, 1e4), B: (5, 50, 100)})
        assert slower_logits(*lower, A, B).passed is True
        explosion = no_explosion(*lower, A, B)
        assert explosion.passed is True
        assert len(explosion.numbers["pairs"]) == 4
        assert explosion.numbers["log_change"]["value"] == pytest.approx(math.log(0.01))

    def test_equal_logits_fail(self):
        same = self.frame(dict.fromkeys((A, B), (10, 100, 1e4)))
        assert slower_logits(*same, A, B).passed is False
        assert no_explosion(*same, A, B).passed is False

    def test_lower_below_and_not_where_they_explode(self):
        assert no_explosion(*self.frame({A: (10, 100, 1e4), B: (1, 10, 1e4)}), A, B).passed is False

    def test_bears(self):
        def losses(of_b):
            of_a = (5.2, 5.0, 5.5)
            return lambda arm, n, lr, seed: (of_a if arm == A else of_b)[(1e-3, 1e-2, 1e-1).index(lr)]

        logits = dict.fromkeys((A, B), (1, 1, 1))
        assert bears(self.frame(logits, losses((5.2, 5.0, 5.05)))[0], A, B).passed is True
        assert bears(self.frame(logits, losses((5.2, 5.0, 5.5)))[0], A, B).passed is False
        assert bears(self.frame(logits, losses((5.0, 5.2, 5.5)))[0], A, B).passed is False
        found = bears(self.frame(logits, losses((5.2, 5.0, 5.2)))[0], A, B)
        # Loss crosses the best + 0.1 at 10^-2 10^(0.1/0.5) and 10^-2 10^(0.1/0.2).
        assert found.numbers["sizes"][0]["ratio"] == pytest.approx(10 ** (0.5 - 0.2))
        assert found.passed is True
        assert bears(self.frame(logits, lambda *_: 5.0)[0], A, B).passed is None
