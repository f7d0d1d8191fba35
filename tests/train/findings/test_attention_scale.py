import pytest

from conf.axis import ConfigError
from tests.train.findings.frames import curve, frame, passed, shifted, without
from train.findings.claims import attention_scale
from train.findings.claims.attention_scale import FULL, FULL_NONE, ROOT, ROOT_NONE

LRS = (1e-2, 1e-1, 1.0)
SMALL, LARGE = 25_000, 600_000
FLAT = {SMALL: curve(LRS, (5.2, 5.0, 5.1)), LARGE: curve(LRS, (5.0, 4.8, 5.0))}
STEEP = {n: curve(LRS, (5.2, 5.0, 6.0)) for n in (SMALL, LARGE)}
GOOD = {
    ROOT: FLAT,
    FULL: {SMALL: shifted(FLAT[SMALL], -0.04), LARGE: shifted(FLAT[LARGE], 0.05)},
    ROOT_NONE: STEEP,
    FULL_NONE: STEEP,
}


def judge(curves=GOOD, seeds=(0, 1), noise=0.002):
    return attention_scale.judge(frame(curves, seeds, noise), {})


def test_reproduced_with_hand_computed_numbers():
    verdict = judge(noise=0.0)
    assert verdict.state == "reproduced"
    growing, slight, norm = (check.numbers for check in verdict.checks)
    assert growing["growth"]["value"] == pytest.approx(0.09)
    # Four best losses, each with the least error of 0.02 / sqrt(8).
    assert growing["growth"]["error"] == pytest.approx(2 * 0.02 / 8**0.5)
    assert slight["change"][SMALL]["value"] == pytest.approx(-0.04)
    assert norm["sizes"][0]["difference"] == pytest.approx(0.4 - 0.1)
    assert judge().state == "reproduced"


def test_negative_control_no_change_at_all_and_no_need_of_the_norm():
    same = judge(dict.fromkeys(GOOD, FLAT))
    assert passed(same) == [None, True, False]
    assert same.state == "not reproduced"


def test_a_change_that_falls_with_n_fails():
    turned = GOOD | {FULL: {SMALL: shifted(FLAT[SMALL], 0.05), LARGE: shifted(FLAT[LARGE], -0.04)}}
    assert passed(judge(turned)) == [False, True, True]


def test_a_large_change_fails_the_slight_one():
    large = GOOD | {FULL: {SMALL: shifted(FLAT[SMALL], -0.04), LARGE: shifted(FLAT[LARGE], 0.3)}}
    assert passed(judge(large)) == [True, False, True]


def test_a_null_claim_needs_known_and_small_noise():
    assert passed(judge(seeds=(0,), noise=0.0)) == [True, None, True]
    runs = frame(GOOD, seeds=(0, 1))
    moved = runs["validation/loss_final"] + 0.2 * (runs["seed"] == 1) * runs["arm"].isin([ROOT, FULL])
    assert passed(attention_scale.judge(runs.assign(**{"validation/loss_final": moved}), {}))[:2] == [None, None]


def test_missing_runs_and_wrong_arms():
    verdict = attention_scale.judge(without(frame(GOOD, (0, 1)), arm=FULL, size=LARGE), {})
    assert passed(verdict) == [None] * 3
    with pytest.raises(ConfigError, match=r"needs the arms 1/sqrt\(d\)"):
        judge({ROOT: FLAT})


def test_figures():
    assert set(attention_scale.draw(frame(GOOD), {})) == {"loss_and_sensitivity", "best_loss"}
