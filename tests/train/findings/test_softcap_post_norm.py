import pytest

from conf.axis import ConfigError
from tests.train.findings.arm_frames import of_losses
from tests.train.findings.probe_frames import passed, pending
from train.findings.claims.softcap_post_norm import draw, judge

LRS = (3e-3, 1.4e-2, 6e-2, 3e-1)
SIZES = (1000, 4000)
STEEP = {1000: (5.6, 5.2, 5.0, 6.0), 4000: (5.2, 4.8, 5.2, 6.2)}
FLAT = {1000: (5.3, 5.02, 5.0, 5.1), 4000: (5.1, 4.8, 4.81, 5.0)}
GOOD = {
    "baseline": STEEP, "soft-cap 50": STEEP, "post-norm": STEEP, "soft-cap 50 and post-norm": FLAT, "QK-norm": FLAT,
}  # fmt: skip


def verdict(losses=GOOD, sizes=SIZES, **how):
    return judge(of_losses(losses, LRS, sizes=sizes, **how), {})


def test_reproduced_with_hand_computed_numbers():
    found = verdict()
    assert found.state == "reproduced"
    sizes = found.checks[0].numbers["sizes"]
    assert sizes[0]["baseline"] == pytest.approx((0.6 + 0.2 + 0 + 1.0) / 4)
    assert sizes[0]["QK-norm"] == pytest.approx((0.3 + 0.02 + 0 + 0.1) / 4)
    # At 6e-2 the sizes lose 0 and 0.01; at 1.4e-2 0.02 and 0.
    assert found.checks[2].numbers["arms"]["QK-norm"] == {"lr": 6e-2, "lost": pytest.approx(0.01)}
    assert found.checks[3].numbers["arms"]["baseline"] == {"lr": 1.4e-2, "lost": pytest.approx(0.2)}


@pytest.mark.parametrize(("noise", "seeds"), [(0.0, (0,)), (0.01, (0, 1))])
def test_negative_control_arms_that_are_the_same(noise, seeds):
    assert passed(verdict(dict.fromkeys(GOOD, STEEP), noise=noise, seeds=seeds)) == [False, False, False, True]
    assert passed(verdict(dict.fromkeys(GOOD, FLAT), noise=noise, seeds=seeds)) == [False, False, True, False]


def test_one_that_is_flat_alone_fails_what_is_said_of_the_ones_alone():
    assert passed(verdict(GOOD | {"soft-cap 50": FLAT})) == [True, False, True, False]


def test_flat_but_no_shared_rate_fails_only_that():
    apart = {1000: (5.3, 5.2, 5.0, 5.1), 4000: (4.95, 4.8, 4.9, 5.0)}
    assert passed(verdict(GOOD | {"QK-norm": apart})) == [True, True, False, True]


def test_missing_runs_one_size_and_wrong_arms():
    runs = of_losses(GOOD, LRS, sizes=SIZES)
    assert passed(judge(pending(runs, arm="QK-norm", size=1000), {})) == [None, None, None, True]
    assert passed(verdict(sizes=(1000,))) == [True, True, None, None]
    with pytest.raises(ConfigError, match="experiment=softcap_post_norm"):
        judge(runs[runs["arm"] != "post-norm"], {})


def test_figures():
    assert set(draw(of_losses(GOOD, LRS, sizes=SIZES), {})) == {"loss_against_lr"}
