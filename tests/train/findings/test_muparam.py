import numpy as np
import pytest

from conf.axis import ConfigError
from tests.train.findings.frames import bowl, frame, passed, shifted, without
from train.findings.claims import muparam
from train.findings.claims.muparam import (
    ARMS,
    FULL,
    FULL_NONE,
    INTERMEDIATE,
    SIMPLE,
    SIMPLE_NONE,
    STANDARD,
    STANDARD_NONE,
)

LRS = (1e-3, 1e-2, 1e-1, 1.0)
SIZES = (25_000, 100_000, 400_000)
FALLING, STEADY = (8e-2, 4e-2, 2e-2), (4e-2, 4e-2, 4e-2)


def bowls(optima, rise=0.015):
    return {n: bowl(LRS, lr, 5.0, rise) for n, lr in zip(SIZES, optima, strict=True)}


FLAT = {n: dict(zip(LRS, (5.4, 5.1, 5.0, 5.09), strict=True)) for n in SIZES}
GOOD = {
    STANDARD: bowls(FALLING), SIMPLE: bowls(STEADY), INTERMEDIATE: bowls(STEADY), FULL: FLAT,
    STANDARD_NONE: bowls(FALLING, 0.2), SIMPLE_NONE: bowls(STEADY, 0.2), FULL_NONE: bowls(STEADY, 0.2),
}  # fmt: skip


def judge(curves=GOOD, seeds=(0, 1), noise=0.001):
    return muparam.judge(frame(curves, seeds, noise), {})


def test_reproduced_with_hand_computed_numbers():
    verdict = judge(noise=0.0)
    assert verdict.state == "reproduced"
    first, _, _, gain, norm, one, further = (check.numbers for check in verdict.checks)
    assert first[STANDARD]["factor"] == pytest.approx(1 / 4)
    assert first[SIMPLE]["factor"] == pytest.approx(1)
    # Grid points lie next to the lowest point of the bowl: loss 5 + 0.015 * log(0.1 / 0.08)^2 and log(0.1 / 0.04)^2.
    by = {(g["N"], g["of"]): g["value"] for g in gain["gains"]}
    assert by[SIZES[0], "loss"] == pytest.approx(0.015 * (np.log(10 / 8) ** 2 - np.log(10 / 4) ** 2))
    assert norm["sizes"][0]["difference"] == pytest.approx((0.2 / 0.015 - 1) * norm["sizes"][0]["with"])
    assert [row["above_best"] for row in one["runs"]] == pytest.approx([0.09] * 6)
    assert further["gains"][0]["N"] == SIZES[-1]
    assert judge().state == "reproduced"


def test_negative_control_equal_arms():
    same = judge(dict.fromkeys(ARMS, bowls(FALLING)))
    assert passed(same) == [None, False, None, True, False, False, True]
    assert same.state == "not reproduced"


def test_only_a_lower_sensitivity_or_loss_fails():
    calmer = GOOD | {SIMPLE: bowls(STEADY, 0.005)}
    assert passed(judge(calmer))[3] is False
    lower = GOOD | {SIMPLE: {n: shifted(of, -0.2) for n, of in bowls(STEADY).items()}}
    assert passed(judge(lower)) == [True, True, True, False, True, True, True]


def test_full_that_gains_or_degrades_fails():
    gains = GOOD | {FULL: {n: shifted(of, -0.2) for n, of in FLAT.items()}}
    assert passed(judge(gains)) == [True, True, True, True, True, True, False]
    breaks = GOOD | {FULL: FLAT | {SIZES[1]: FLAT[SIZES[1]] | {1.0: 5.3}}}
    assert passed(judge(breaks)) == [True, True, True, True, True, False, True]
    assert judge(breaks).checks[5].numbers["runs"][2]["diverged"] is False


def test_null_claims_are_open_without_seeds():
    assert passed(judge(seeds=(0,), noise=0.0)) == [True, True, True, None, True, True, None]


def test_missing_runs_and_wrong_arms():
    runs = without(frame(GOOD, (0, 1)), arm=SIMPLE, size=SIZES[0])
    assert passed(muparam.judge(runs, {})) == [None, None, True, None, None, True, None]
    with pytest.raises(ConfigError, match="needs the arms standard, simple, intermediate, full"):
        judge({STANDARD: GOOD[STANDARD]})
    short = GOOD | {FULL: {n: {lr: of[lr] for lr in LRS[:3]} for n, of in FLAT.items()}}
    with pytest.raises(ConfigError, match="needs runs of full at LR 1"):
        judge(short)


def test_figures():
    assert set(muparam.draw(frame(GOOD), {})) == {"loss_against_lr", "over_size"}
