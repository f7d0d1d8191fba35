import math

import pytest

from conf.axis import ConfigError
from tests.train.findings.arm_frames import of_losses
from tests.train.findings.probe_frames import passed, pending
from train.findings.claims.stabilizers import PUBLISHED, draw, judge, tau_b

LRS = (6e-3, 1.4e-2, 3e-2, 6e-2, 1.4e-1, 3e-1)


def breaking(**at):
    """Losses of arms that lose a nat from this place of the grid on."""
    names = {"qk": "QK-norm", "qkv": "QKV-norm", "cap": "soft-cap 50", "sigma": "sigmaReparam", "scale": "LayerScale"}
    return {
        names.get(arm, arm): tuple(5.0 + (i >= place) * (1 + 0.1 * i) for i in range(len(LRS)))
        for arm, place in at.items()
    }


GOOD = breaking(baseline=1, sigma=2, scale=2, cap=3, qk=3, qkv=5)


def verdict(losses=GOOD, **how):
    return judge(of_losses(losses, LRS, **how), {})


def test_tau_b():
    assert tau_b([1, 2, 3], [1, 2, 3]) == pytest.approx(1)
    assert tau_b([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Two concordant, none discordant, one tie on one side: 2 / sqrt(2 * 3)
    assert tau_b([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / math.sqrt(6))
    assert tau_b([1, 2], [math.inf, math.inf]) is None
    assert tau_b([1, 2], [1.0, math.inf]) == pytest.approx(1)


def test_reproduced():
    found = verdict()
    assert found.state == "reproduced"
    assert found.checks[0].numbers["tau_b"] == [pytest.approx(1)]
    first = found.checks[0].numbers["sizes"][0]["first"]
    assert (first["baseline"], first["QKV-norm"]) == pytest.approx((1.4e-2, 3e-1))


def test_negative_controls():
    assert passed(verdict(dict.fromkeys(GOOD, GOOD["baseline"]))) == [None, False, True]
    places = {"baseline": 5, "sigma": 3, "scale": 3, "cap": 2, "qk": 2, "qkv": 1}
    assert passed(verdict(breaking(**places))) == [False, False, False]


def test_each_check_fails_alone():
    assert passed(verdict(breaking(baseline=2, sigma=2, scale=3, cap=4, qk=4, qkv=5))) == [True, False, True]
    assert passed(verdict(breaking(baseline=1, sigma=2, scale=2, cap=3, qk=5, qkv=4))) == [True, True, False]
    assert passed(verdict(breaking(baseline=1, sigma=5, scale=5, cap=2, qk=2, qkv=5))) == [False, True, True]


def test_an_arm_that_never_degrades_is_the_last():
    assert verdict(GOOD | {"QKV-norm": (5.0,) * 6}).state == "reproduced"


def test_nothing_breaks_or_runs_missing():
    assert passed(verdict(dict.fromkeys(PUBLISHED, (5.0,) * 6))) == [None, None, None]
    assert passed(judge(pending(of_losses(GOOD, LRS), arm="QK-norm"), {})) == [None, None, None]
    with pytest.raises(ConfigError, match="experiment=stabilizers"):
        verdict({arm: losses for arm, losses in GOOD.items() if arm != "LayerScale"})


def test_arms_beyond_the_table_are_named_and_drawn():
    runs = of_losses(GOOD | {"QK-clip 100": (5.0,) * 6}, LRS)
    assert "Not in their table and not judged: QK-clip 100" in judge(runs, {}).notes
    figures = draw(runs, {})
    assert set(figures) == {"loss_against_lr", "against_published"}
    assert "QK-clip 100" in [text.get_text() for text in figures["loss_against_lr"].legends[0].get_texts()]
