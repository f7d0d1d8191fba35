import math

import pytest

from conf.axis import ConfigError
from tests.train.findings.frames import bowl, frame, passed, without
from train.findings.claims import parameter_rms
from train.findings.claims.parameter_rms import STANDARD, TIMES_RMS

LRS = (1e-3, 1e-2, 1e-1, 1.0)
SIZES = (25_000, 100_000, 400_000)


def losses(standard, other, rise=0.05):
    """Bowls with their lowest points at these LRs."""
    return {
        arm: {n: bowl(LRS, lr, 5.0, rise) for n, lr in zip(SIZES, of, strict=True)}
        for arm, of in ((STANDARD, standard), (TIMES_RMS, other))
    }


FALLING, STEADY = (8e-2, 4e-2, 2e-2), (5e-2, 5.5e-2, 5e-2)


def judge(*of, **more):
    return parameter_rms.judge(frame(losses(*of, **more)), {})


def test_reproduced_with_hand_computed_numbers():
    verdict = judge(FALLING, STEADY)
    assert verdict.state == "reproduced"
    first, second = (check.numbers for check in verdict.checks)
    assert [s["lr"] for s in first[STANDARD]["sizes"]] == pytest.approx(FALLING)
    assert first[STANDARD]["factor"] == pytest.approx(1 / 4)
    assert second["factor"] == pytest.approx(1.0)
    assert second["log_factor_error"] > 0


def test_negative_control_equal_arms():
    for optima in (FALLING, STEADY):
        assert judge(optima, optima).state != "reproduced"
    assert passed(judge(FALLING, FALLING)) == [None, False]
    assert passed(judge(STEADY, STEADY))[0] is None


def test_an_optimum_that_moves_more_fails():
    assert passed(judge((8e-2, 6e-2, 4e-2), (8e-2, 4e-2, 2e-2))) == [False, False]
    # Up counts as down does.
    assert passed(judge((8e-2, 6e-2, 4e-2), (2e-2, 4e-2, 8e-2)))[1] is False


def test_a_flat_curve_has_no_optimum_to_speak_of():
    assert passed(judge(FALLING, STEADY, rise=0.001)) == [None, None]


def test_an_optimum_at_the_edge_is_open():
    verdict = judge(FALLING, (5e-2, 5e-2, 1e-4))
    assert passed(verdict) == [None, None]
    assert "400k at the grid's edge" in verdict.checks[1].text


def test_missing_runs_and_wrong_arms():
    runs = frame(losses(FALLING, STEADY))
    assert passed(parameter_rms.judge(without(runs, arm=TIMES_RMS, size=SIZES[0]), {})) == [None, None]
    with pytest.raises(ConfigError, match="needs the arms standard, times parameter RMS"):
        parameter_rms.judge(runs[runs["arm"] == STANDARD], {})


def test_the_optimum_is_averaged_over_seeds_in_log():
    runs = frame(losses(FALLING, STEADY), seeds=(0, 1))
    other = frame(losses((4e-2, 4e-2, 2e-2), STEADY), seeds=(1,)).set_index("run")["validation/loss_final"]
    runs["validation/loss_final"] = runs["run"].map(other).fillna(runs["validation/loss_final"])
    sizes = parameter_rms.judge(runs, {}).checks[0].numbers[STANDARD]["sizes"]
    assert sizes[0]["lr"] == pytest.approx(math.sqrt(8e-2 * 4e-2))


def test_figures():
    assert set(parameter_rms.draw(frame(losses(FALLING, STEADY)), {})) == {"loss_against_lr", "optimal_lr"}
