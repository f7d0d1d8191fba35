import numpy as np
import pytest

from tests.train.findings.probe_frames import passed, pending, sweep
from train.findings.claims.early_warning import LOGIT, UPDATE, auc, draw, judge

LRS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
LOSSES = dict(zip(LRS, (5.1, 5.05, 5.0, 5.3, 5.6, 6.0), strict=True))


def probes(logit=True, update=True, departure=50, late=0):
    """Runs that degrade have other logits and updates from step `late` on, and another loss from `departure` on."""

    def of(arm, n, lr, seed):
        bad = lr > 1e-2

        def switched(on, low, high):
            return lambda step: high if bad and on and step >= late else low + 1e-3 * ((n + seed) % 7)

        return {
            "attention/block0/logit_max": switched(logit, 10.0, 1000.0 * lr), "attention/entropy": 2.0,
            "update/embedding/rms": 0.1, "update/head/rms": switched(update, 0.3, 0.9), "gradient/norm": 1.0,
            "residual/block0/rms": 1.0, "train/loss": lambda step: 5.5 if bad and step >= departure else 5.0,
        }  # fmt: skip

    return of


def made(**how):
    return sweep(probes(**how), lrs=LRS, losses=lambda arm, n, lr, seed: LOSSES[lr])


def test_reproduced_with_known_scores():
    verdict = judge(*made())
    assert verdict.state == "reproduced"
    scores = verdict.checks[0].numbers["auc"]
    assert scores[LOGIT] == scores[UPDATE] == {0.1: 1.0, 0.25: 1.0}
    # The same for all until the loss departs.
    assert scores["training loss"] == scores["update RMS, embedding"] == {0.1: 0.5, 0.25: 0.5}
    lead = verdict.checks[2].numbers["runs"][0]
    assert (lead["alarm"], lead["departure"], lead["level"]) == (0, 50, pytest.approx(10.0, abs=0.01))


def test_each_probe_fails_alone():
    assert passed(judge(*made(update=False))) == [True, False, True]
    assert passed(judge(*made(logit=False))) == [False, True, False]


def test_a_probe_that_rises_after_the_loss_is_no_warning():
    assert passed(judge(*made(late=60, departure=20))) == [False, False, False]


def test_what_comes_after_the_reading_is_not_used():
    scores = judge(*made(late=20, departure=90)).checks[0].numbers["auc"]
    assert scores[LOGIT][0.1] < 0.9
    assert scores[LOGIT][0.25] == 1


def test_a_loss_that_tells_as_early_leaves_no_warning_to_give():
    verdict = judge(*made(departure=0))
    assert passed(verdict) == [False, False, False]


def test_too_few_runs_or_missing_ones_decide_nothing():
    few = sweep(probes(), lrs=LRS, sizes=(1000,), losses=lambda arm, n, lr, seed: LOSSES[lr])
    assert passed(judge(*few)) == [None, None, None]
    runs, metrics = made()
    assert passed(judge(pending(runs, size=1000), metrics)) == [None, None, None]


def test_auc():
    assert auc([1, 2, 3], [0, 2]) == pytest.approx(4.5 / 6)
    assert auc([np.inf], [1.0]) == 1
    assert auc([], [1.0]) is None


def test_figures():
    assert set(draw(*made())) == {"auc_of_probes", "probes_in_time"}
