import math

import pytest

from conf.axis import ConfigError
from tests.train.findings.frames import bowl, frame, passed, without
from train.findings.claims import decay_value

LRS = (3e-3, 6e-3, 1.4e-2, 3e-2, 6e-2, 1.4e-1, 3e-1)
# null is the paper's 1e-4; names in another order than values.
DECAYS = {"large": {"optimizer.weight_decay": 1e-2}, "default": {"optimizer.weight_decay": None},
          "middle": {"optimizer.weight_decay": 1e-3}}  # fmt: skip
N = 25_000


def sweep(default, middle, large, seeds=(0, 1), noise=0.0):
    best = {"default": default, "middle": middle, "large": large}
    return frame({arm: {N: bowl(LRS, lr, 5.0)} for arm, lr in best.items()}, seeds, noise, DECAYS)


def judge(*best, **more):
    return decay_value.judge(sweep(*best, **more), {})


def test_reproduced_with_hand_computed_numbers():
    verdict = judge(0.02, 0.03, 0.05)
    assert verdict.state == "reproduced"
    right = verdict.checks[0].numbers
    # Losses are parabolas, so their lowest points are found exactly.
    assert right["log_shift"]["value"] == pytest.approx(math.log(2.5))
    assert [(s["arm"], s["decay"]) for s in right["optima"]] == [("default", 1e-4), ("middle", 1e-3), ("large", 1e-2)]
    assert [s["lr"] for s in right["optima"]] == pytest.approx([0.02, 0.03, 0.05])
    assert right["log_steps"]["default to middle"]["value"] == pytest.approx(math.log(1.5))


@pytest.mark.parametrize(("seeds", "noise"), [((0,), 0.0), ((0, 1), 0.0), ((0, 1), 0.01), ((0, 1, 2), 0.02)])
def test_negative_control_equal_arms(seeds, noise):
    verdict = judge(0.03, 0.03, 0.03, seeds=seeds, noise=noise)
    assert passed(verdict)[0] is not True
    assert verdict.state != "reproduced"


def test_to_the_left_or_down_in_the_middle_fails():
    assert passed(judge(0.05, 0.03, 0.02))[0] is False
    assert passed(judge(0.02, 0.008, 0.05))[0] is False


def test_more_than_slightly_fails():
    assert passed(judge(0.007, 0.03, 0.13)) == [True, False]


def test_an_optimum_at_the_edge_or_missing_runs_leave_open():
    assert passed(judge(0.02, 0.05, 0.5)) == [None, None]
    runs = without(sweep(0.02, 0.03, 0.05), arm="middle", lr=3e-2)
    assert passed(decay_value.judge(runs, {})) == [None, None]
    assert decay_value.judge(runs.assign(ended=False), {}).state == "inconclusive"


def test_sweeps_that_it_cannot_judge():
    with pytest.raises(ConfigError, match="compares arms of different"):
        decay_value.judge(sweep(0.02, 0.03, 0.05).assign(**{"optimizer.weight_decay": 1e-4}), {})
    with pytest.raises(ConfigError, match="this sweep has none"):
        decay_value.judge(sweep(0.02, 0.03, 0.05).drop(columns="arm"), {})


def test_figure():
    figure = decay_value.draw(sweep(0.02, 0.03, 0.05), {})["loss_against_lr"]
    assert [axes.get_title() for axes in figure.axes] == ["N = 25k", ""]
