import math

import numpy as np
import pytest

from conf.axis import ConfigError
from tests.train.findings.frames import curve, frame, passed, without
from train.findings.claims import relu_attention

LRS = (1e-2, 1e-1, 1.0)
LOGITS = {"softmax": (8, 100, 1e4), "squared ReLU": (5, 50, 2e3), "squared ReLU, qk-norm": (4, 6, 20)}
SIZES = (25_000, 98_000)


def sweep(logits=LOGITS, seeds=(0, 1), noise=0.0):
    """`noise` is the standard deviation of the log of a logit."""
    runs = frame({arm: dict.fromkeys(SIZES, curve(LRS, (5.2, 5.0, 5.5))) for arm in logits}, seeds)
    at = [logits[arm][LRS.index(lr)] for arm, lr in zip(runs["arm"], runs["optimizer.lr"], strict=True)]
    return runs.assign(logit_max=np.array(at) * np.exp(noise * np.random.default_rng(0).standard_normal(len(runs))))


def judge(logits=LOGITS, **more):
    return relu_attention.judge(sweep(logits, **more), {})


def test_reproduced_with_hand_computed_numbers():
    verdict = judge(noise=0.2)
    assert verdict.state == "reproduced"
    verdict = judge()
    softmax, relu, bounded = (check.numbers["sizes"][0] for check in verdict.checks)
    assert softmax["factor"] == pytest.approx(1e4 / 8)
    assert relu["factor"] == pytest.approx(400)
    assert bounded["factor"] == pytest.approx(100)
    assert (relu["lowest_lr"], relu["highest_lr"]) == (1e-2, 1.0)


def test_logits_that_do_not_grow_without_softmax_fail():
    assert passed(judge(LOGITS | {"squared ReLU": (5, 6, 30)})) == [True, False, False]
    assert passed(judge(LOGITS | {"softmax": (8, 9, 10)})) == [False, True, True]


def test_growth_that_qk_norm_has_too_fails():
    assert passed(judge(LOGITS | {"squared ReLU, qk-norm": (4, 50, 900)})) == [True, True, False]


@pytest.mark.parametrize(("seeds", "noise"), [((0,), 0.0), ((0, 1), 0.3)])
def test_negative_control_equal_arms(seeds, noise):
    verdict = judge(dict.fromkeys(LOGITS, (4, 6, 20)), seeds=seeds, noise=noise)
    assert True not in passed(verdict)


def test_noise_as_large_as_the_growth_leaves_open():
    # A factor of 20 where seeds differ by a factor of 10 or so.
    assert None in passed(judge(LOGITS | {"squared ReLU": (5, 50, 100)}, noise=2.0))


def test_a_run_that_went_to_nan_at_once_has_infinite_logits():
    runs = sweep()
    gone = (runs["arm"] == "squared ReLU") & (runs["optimizer.lr"] == 1.0)
    runs = runs.assign(logit_max=runs["logit_max"].where(~gone), state=np.where(gone, "diverged", "finished"))
    verdict = relu_attention.judge(runs, {})
    assert verdict.state == "reproduced"
    assert math.isinf(verdict.checks[1].numbers["sizes"][0]["factor"])


def test_missing_runs_leave_open_what_needs_them():
    runs = without(sweep(), arm="squared ReLU, qk-norm", lr=1.0)
    assert passed(relu_attention.judge(runs, {})) == [True, True, None]
    assert passed(relu_attention.judge(without(sweep(), arm="squared ReLU"), {})) == [True, None, None]


def test_wrong_arms():
    with pytest.raises(ConfigError, match="needs the arms softmax, squared ReLU, squared ReLU, qk-norm"):
        relu_attention.judge(sweep().query("arm == 'softmax'"), {})


def test_figure():
    runs = sweep().assign(entropy_final=2.0)
    assert set(relu_attention.draw(runs, {})) == {"loss_and_logits_against_lr"}
