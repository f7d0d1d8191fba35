import pytest

from conf.axis import ConfigError
from tests.train.findings.arm_frames import of_losses
from tests.train.findings.probe_frames import passed, pending
from train.findings.claims.sigma_reparam import draw, judge

LRS = (3e-3, 1.4e-2, 6e-2)
GOOD = {"plain": (5.3, 5.6, 7.5), "sigmaReparam": (5.2, 5.05, 5.3), "LayerNorm": (5.2, 5.0, 5.2)}


def verdict(losses=GOOD, **how):
    return judge(of_losses(losses, LRS, **how), {})


def test_reproduced_with_hand_computed_numbers():
    found = verdict(seeds=(0, 1))
    assert found.state == "reproduced"
    best, gains, saved = (check.numbers["sizes"][0] for check in found.checks)
    assert best["difference"] == pytest.approx(0.05)
    assert list(gains["gains"].values()) == pytest.approx([0.1, 0.55, 2.2])
    assert gains["needed"] == pytest.approx(0.02)
    # Of the LRs at which plain ends above 5.0 + 0.1, only at 1.4e-2 does sigmaReparam not.
    assert saved["saved_at"] == [1.4e-2]


def test_negative_control_arms_that_are_the_same():
    for noise, seeds in ((0.0, (0,)), (0.02, (0, 1))):
        same = verdict(dict.fromkeys(GOOD, GOOD["LayerNorm"]), noise=noise, seeds=seeds)
        assert passed(same) == [True, False, False]


def test_a_gain_within_seed_noise_does_not_count():
    losses = GOOD | {"plain": (5.25, 5.1, 5.35)}
    assert passed(verdict(losses))[1] is True
    assert passed(verdict(losses, noise=0.3, seeds=(0, 1)))[1] is False


def test_each_check_fails_alone():
    assert passed(verdict(GOOD | {"LayerNorm": (5.0, 4.97, 4.9), "plain": (7.0, 7.0, 7.0)})) == [False, True, False]
    assert passed(verdict(GOOD | {"sigmaReparam": (5.5, 5.05, 5.3)})) == [True, False, True]
    assert passed(verdict(GOOD | {"plain": (5.3, 5.08, 7.5)})) == [True, True, False]


def test_missing_runs_and_wrong_arms():
    runs = of_losses(GOOD, LRS)
    assert passed(judge(pending(runs, arm="plain", optimizer__lr=6e-2), {})) == [True, None, None]
    with pytest.raises(ConfigError, match="experiment=sigma_reparam"):
        judge(runs[runs["arm"] != "plain"], {})


def test_figures():
    assert set(draw(of_losses(GOOD, LRS), {})) == {"loss_against_lr"}
