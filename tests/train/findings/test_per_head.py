import pytest

from conf.axis import ConfigError
from tests.train.findings.frames import curve, frame, passed, shifted, without
from train.findings.claims import per_head

LRS = (1e-2, 1e-1, 1.0)
PER_HEAD = {25_000: curve(LRS, (5.2, 5.0, 5.1)), 98_000: curve(LRS, (4.9, 4.7, 4.8))}


def moved(by):
    return {n: shifted(losses, by) for n, losses in PER_HEAD.items()}


def sweep(model, seeds=(0, 1), noise=0.0):
    return frame({"per head": PER_HEAD, "model dimension": model}, seeds, noise)


def judge(model, **more):
    return per_head.judge(sweep(model, **more), {})


def test_reproduced_with_hand_computed_numbers():
    verdict = judge(moved(0.03), seeds=(0, 1), noise=0.001)
    assert verdict.state == "reproduced"
    lower = verdict.checks[0].numbers
    # 2 sizes, 3 LRs, 2 seeds; losses spread by 0.001 between seeds.
    assert sum(s["pairs"] for s in lower["sizes"]) == 12
    assert lower["gain"]["value"] == pytest.approx(0.03, abs=2e-3)
    assert lower["gain"]["error"] == pytest.approx(0.001 * (2 / 12) ** 0.5, rel=0.5)
    assert lower["sizes"][0]["best_per_head"] == pytest.approx(5.0, abs=2e-3)
    assert lower["sizes"][0]["best_model"] == pytest.approx(5.03, abs=2e-3)


def test_negative_control_equal_arms():
    assert passed(judge(PER_HEAD)) == [False, True, True]
    assert passed(judge(PER_HEAD, noise=0.003))[0] is False
    # With more noise it can't be said that there is no slight gain.
    assert passed(judge(PER_HEAD, noise=0.03))[0] is not True


def test_worse_head_by_head_fails():
    assert passed(judge(moved(-0.03)))[0] is False


def test_more_than_slightly_better_fails():
    assert passed(judge(moved(0.2))) == [True, False, True]


def test_higher_sensitivity_head_by_head_fails():
    # Sensitivities 0.1 head by head; (0.02 + 0.02) / 3 over the model dimension at the small size.
    flat = PER_HEAD | {25_000: curve(LRS, (5.22, 5.2, 5.22))}
    assert passed(judge(flat)) == [True, True, False]


def test_one_seed_or_missing_runs_leave_open():
    assert passed(judge(moved(0.03), seeds=(0,))) == [None, None, None]
    runs = without(sweep(moved(0.03)), arm="per head", lr=1.0, size=25_000)
    verdict = per_head.judge(runs, {})
    assert passed(verdict) == [None, None, None]
    assert verdict.checks[0].text.startswith("2 runs missing; so far: ")
    assert per_head.judge(runs.assign(ended=False), {}).state == "inconclusive"


def test_wrong_arms():
    with pytest.raises(ConfigError, match="needs the arms per head, model dimension"):
        per_head.judge(sweep(PER_HEAD).assign(arm="per head"), {})


def test_figure():
    assert set(per_head.draw(sweep(moved(0.03)), {})) == {"loss_against_lr"}
