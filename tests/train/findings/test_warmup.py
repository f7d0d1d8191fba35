import pytest

from conf.axis import ConfigError
from tests.train.findings.frames import curve, frame, passed, without
from train.findings.claims import warmup

LRS = (1e-2, 1e-1, 1.0)
SMALL, LARGE = 25_000, 600_000
COLUMNS = {arm: {"schedule.warmup_fraction": f} for arm, f in {"long": 0.25, "short": 0.0025, "middle": 0.05}.items()}
GOOD = {
    # Sensitivities 0.2, 0.15, 0.1 and 0.6, 0.3, 0.1; means over the grid 5.2, 5.15, 5.1 and 5.4, 5.1, 4.9.
    "long": {SMALL: curve(LRS, (5.2, 5.0, 5.1)), LARGE: curve(LRS, (4.9, 4.8, 5.0))},
    "short": {SMALL: curve(LRS, (5.2, 5.0, 5.4)), LARGE: curve(LRS, (4.9, 4.8, 6.5))},
    "middle": {SMALL: curve(LRS, (5.2, 5.0, 5.25)), LARGE: curve(LRS, (4.9, 4.8, 5.6))},
}


def judge(runs):
    return warmup.judge(runs, {})


def alike(seeds=(0,), noise=0.0):
    return frame(dict.fromkeys(GOOD, GOOD["short"]), seeds, noise, COLUMNS)


def test_reproduced_with_hand_computed_numbers():
    verdict = judge(frame(GOOD, columns=COLUMNS))
    assert verdict.state == "reproduced"
    lower, loss, most, larger = (check.numbers for check in verdict.checks)
    # The arms in the order of their warm-ups, not of their names.
    assert lower["arms"] == ["short", "middle", "long"]
    assert lower["sizes"][0]["sensitivity"] == pytest.approx([0.6 / 3, 0.45 / 3, 0.3 / 3])
    assert lower["sizes"][1]["sensitivity"] == pytest.approx([1.8 / 3, 0.9 / 3, 0.3 / 3])
    assert loss["sizes"][1]["mean_loss"] == pytest.approx([16.2 / 3, 15.3 / 3, 14.7 / 3])
    assert most["falls"][LARGE]["value"] == pytest.approx(0.5)
    assert most["more"]["value"] == pytest.approx(0.4)
    # 0.1 of the 1.7 and of the 0.2 nats between LRs 0.1 and 1.
    assert larger["critical_lr"][0] == pytest.approx(0.1 * 10 ** (0.1 / 1.7))
    assert larger["critical_lr"][2] == pytest.approx(0.1 * 10**0.5)
    assert larger["rise"] == pytest.approx(10 ** (0.5 - 0.1 / 1.7))


@pytest.mark.parametrize(("seeds", "noise"), [((0,), 0.0), ((0,), 0.02), ((0, 1), 0.02)])
def test_negative_control_equal_arms(seeds, noise):
    verdict = judge(alike(seeds, noise))
    assert verdict.state == "not reproduced"
    assert passed(verdict)[:2] == [False, False]
    assert passed(verdict)[2] is not True
    assert passed(verdict)[3] is False


def test_a_rise_in_the_middle_fails():
    worse = GOOD | {"middle": GOOD["middle"] | {LARGE: curve(LRS, (4.9, 4.8, 7.0))}}
    assert passed(judge(frame(worse, columns=COLUMNS))) == [False, True, True, True]


def test_lower_sensitivity_at_a_higher_loss_fails():
    worse = GOOD | {"long": {n: {lr: loss + 0.6 for lr, loss in of.items()} for n, of in GOOD["long"].items()}}
    assert passed(judge(frame(worse, columns=COLUMNS))) == [True, False, True, True]


def test_most_for_the_small_model_fails():
    turned = {arm: {SMALL: sizes[LARGE], LARGE: sizes[SMALL]} for arm, sizes in GOOD.items()}
    assert passed(judge(frame(turned, columns=COLUMNS))) == [True, True, False, True]


def test_nothing_degrades_leaves_the_critical_lr_open():
    calm = {arm: {n: curve(LRS, (5.09, 5.0, 5.05)) for n in (SMALL, LARGE)} for arm in GOOD}
    assert passed(judge(frame(calm, columns=COLUMNS)))[3] is None


def test_missing_runs_leave_it_open():
    verdict = judge(without(frame(GOOD, columns=COLUMNS), arm="middle", size=LARGE))
    assert passed(verdict) == [None] * 4
    assert verdict.checks[0].text.startswith("3 runs missing; so far")


def test_noise_widens_what_is_needed():
    runs = frame(GOOD, seeds=(0, 1), columns=COLUMNS)
    wild = (runs["seed"] == 1) & (runs["optimizer.lr"] == 1.0)
    assert (
        passed(judge(runs.assign(**{"validation/loss_final": runs["validation/loss_final"] + 1.2 * wild})))[0] is False
    )


def test_arms_must_differ_in_warmup():
    with pytest.raises(ConfigError, match=r"finding warmup compares arms of different schedule\.warmup_fraction"):
        judge(frame(GOOD, columns={arm: {"schedule.warmup_fraction": 0.05} for arm in GOOD}))
    with pytest.raises(ConfigError, match="finding warmup"):
        judge(frame(GOOD))


def test_figures():
    assert set(warmup.draw(frame(GOOD, columns=COLUMNS), {})) == {"loss_and_sensitivity"}
