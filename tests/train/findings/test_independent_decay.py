import pytest

from conf.axis import ConfigError
from tests.train.findings.frames import curve, frame, passed, without
from train.findings.claims import independent_decay

LRS, FIVE = (1e-2, 1e-1, 1.0), (1e-3, 1e-2, 1e-1, 1.0)
SMALL, LARGE = 25_000, 600_000
GOOD = {
    "independent": {SMALL: curve(LRS, (5.2, 5.0, 5.1)), LARGE: curve(LRS, (5.0, 4.8, 5.0))},
    # Windows 1e-3 ... 1e-1 and 1e-2 ... 1: 0.7 / 3 and 1 / 3; 0.6 / 3 and 2 / 3.
    "coupled": {SMALL: curve(FIVE, (5.6, 5.1, 5.0, 5.9)), LARGE: curve(FIVE, (5.3, 4.8, 4.9, 6.7))},
}


def judge(runs):
    return independent_decay.judge(runs, {})


def test_reproduced_with_the_better_window():
    verdict = judge(frame(GOOD))
    assert verdict.state == "reproduced"
    small, large = verdict.checks[0].numbers["sizes"]
    assert (small["independent"], large["independent"]) == pytest.approx((0.1, 0.4 / 3))
    assert (small["coupled"], large["coupled"]) == pytest.approx((0.7 / 3, 0.6 / 3))
    assert (small["coupled_over_the_same_lrs"], large["coupled_over_the_same_lrs"]) == pytest.approx((1 / 3, 2 / 3))
    lrs = verdict.checks[1].numbers["sizes"]
    # Crossings of best + 0.1: 0.9 nats from LR 0.1 to 1; 0.1 of them at 0.1 itself, which doesn't exceed it.
    assert lrs[0]["coupled"] == pytest.approx(0.1 * 10 ** (0.1 / 0.9))
    assert lrs[0]["independent"] is None
    assert lrs[1]["independent"] == pytest.approx(0.1 * 10**0.5)


@pytest.mark.parametrize(("seeds", "noise"), [((0,), 0.0), ((0, 1), 0.02)])
def test_negative_control_equal_losses(seeds, noise):
    same = {
        "independent": {n: {lr: of[lr] for lr in LRS} for n, of in GOOD["coupled"].items()},
        "coupled": GOOD["coupled"],
    }
    assert passed(judge(frame(same, seeds, noise))) == [False, False]


def test_the_better_window_may_undo_the_difference():
    saved = GOOD | {"coupled": GOOD["coupled"] | {SMALL: curve(FIVE, (5.2, 5.0, 5.1, 5.9))}}
    verdict = judge(frame(saved))
    assert passed(verdict) == [False, True]
    assert verdict.checks[0].numbers["sizes"][0]["coupled"] == pytest.approx(0.1)


def test_critical_lr_not_lower_fails_and_open_where_nothing_degrades():
    late = GOOD | {"independent": GOOD["independent"] | {LARGE: curve(LRS, (5.0, 4.9, 6.9))}}
    assert passed(judge(frame(late)))[1] is False
    calm = {
        "independent": {SMALL: curve(LRS, (5.2, 5.0, 5.05))},
        "coupled": {SMALL: curve(FIVE, (5.9, 5.4, 5.0, 5.05))},
    }
    assert passed(judge(frame(calm))) == [True, None]


def test_missing_runs_leave_it_open():
    verdict = judge(without(frame(GOOD), arm="coupled", lr=1e-3))
    assert passed(verdict) == [None, None]
    assert "2 runs missing" in verdict.checks[0].text


def test_sweeps_that_it_cannot_judge():
    with pytest.raises(ConfigError, match="needs the LRs of independent and one below them for coupled"):
        judge(frame({arm: {SMALL: curve(LRS, (5.2, 5.0, 5.1))} for arm in GOOD}))
    with pytest.raises(ConfigError, match="needs the arms independent, coupled"):
        judge(frame({"independent": GOOD["independent"]}))


def test_figures():
    assert set(independent_decay.draw(frame(GOOD), {})) == {"loss_against_lr", "lr_sensitivity"}
