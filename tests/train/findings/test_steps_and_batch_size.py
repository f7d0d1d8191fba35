"""The two findings of no change, which share their check."""

import math

import pytest

from conf.axis import ConfigError
from tests.train.findings.frames import curve, frame, passed, shifted, without
from train.findings.claims import batch_size, steps

LRS = (1e-2, 1e-1, 1.0)
# Sensitivities (0.2 + 0 + 0.1) / 3 and 0.6 / 3, of which 0.1 / 3 and 0.4 / 3 are above the best LR.
SMALL, LARGE = curve(LRS, (5.2, 5.0, 5.1)), curve(LRS, (4.9, 4.7, 5.1))
SIZES = {25_000: SMALL, 98_000: LARGE}
STEPS = {"b": {"steps": 400}, "c": {"steps": 800}, "a": {"steps": 200}}
BATCHES = {"four": {"batch_size": 64, "steps": 100}, "one": {"batch_size": 16, "steps": 400}}


def judge(curves, seeds=(0, 1), noise=0.0):
    return steps.judge(frame(curves, seeds, noise, STEPS), {})


def wider(by):
    """The largest LR of the small size loses `by` nats."""
    return SIZES | {25_000: SMALL | {1.0: SMALL[1.0] + by}}


def test_same_curves_at_other_losses_are_no_change():
    moved = {n: shifted(losses, 0.3) for n, losses in SIZES.items()}
    verdict = judge({"a": SIZES, "b": moved, "c": SIZES})
    assert verdict.state == "reproduced"
    # Held against the middle length, in the order of lengths.
    assert [check.claim for check in verdict.checks] == [f"LR sensitivity is the same with {a} as with b" for a in "ac"]
    small, large = verdict.checks[0].numbers["sizes"]
    assert small["reference"] == pytest.approx(0.1)
    assert small["above_best_reference"] == pytest.approx(0.1 / 3)
    assert large["arm"] == pytest.approx(0.2)
    assert large["above_best_arm"] == pytest.approx(0.4 / 3)


def test_a_real_difference_fails_at_one_size_and_arm():
    assert passed(judge({"a": SIZES, "b": SIZES, "c": wider(0.18)})) == [True, False]
    assert passed(judge({"a": wider(0.18), "b": SIZES, "c": SIZES})) == [False, True]
    # 0.12 / 3 = 0.04 is below the tolerance.
    assert judge({"a": SIZES, "b": SIZES, "c": wider(0.12)}).state == "reproduced"


def test_one_seed_decides_neither_no_change_nor_a_change():
    for last in (SIZES, wider(0.3)):
        verdict = judge({"a": SIZES, "b": SIZES, "c": last}, seeds=(0,))
        assert passed(verdict) == [None, None]
        assert "One seed a curve: a claim of no change stays open; add seed=0,1" in verdict.notes


def test_too_much_noise_to_have_seen_a_difference():
    runs = frame({"a": SIZES, "b": SIZES, "c": SIZES}, (0, 1), 0.0, STEPS)
    wild = (runs["seed"] == 1) & (runs["optimizer.lr"] == 1.0) & (runs["arm"] == "c")
    runs = runs.assign(**{"validation/loss_final": runs["validation/loss_final"] + 0.3 * wild})
    check = steps.judge(runs, {}).checks[1]
    assert check.passed is None
    # Two of six curves have seeds 0.1 nats apart: a variance of 0.005 each, error = pooled sd * sqrt(1/2 + 1/2).
    assert check.numbers["sizes"][0]["error"] == pytest.approx(math.sqrt(2 * 0.005 / 6))
    assert check.numbers["sizes"][0]["difference"] == pytest.approx(0.05)


def test_small_noise_passes_as_reproduced():
    assert judge({"a": SIZES, "b": SIZES, "c": SIZES}, (0, 1, 2), 0.005).state == "reproduced"


def test_missing_runs_leave_open():
    runs = without(
        frame({"a": SIZES, "b": SIZES, "c": SIZES}, (0, 1), 0.0, STEPS), arm="c", lr=1.0, seed=1, size=25_000
    )
    verdict = steps.judge(runs, {})
    assert passed(verdict) == [True, None]
    assert verdict.checks[1].text.startswith("1 run missing; so far: the same within 0.05 nats at 1 of 1 sizes")
    assert steps.judge(runs.assign(ended=False), {}).state == "inconclusive"


def test_batches_against_the_smallest_at_constant_data():
    verdict = batch_size.judge(frame(dict.fromkeys(BATCHES, SIZES), (0, 1), 0.0, BATCHES), {})
    assert verdict.state == "reproduced"
    assert verdict.checks[0].claim == "LR sensitivity is the same with four as with one"
    curves = {"one": SIZES, "four": wider(0.3)}
    assert batch_size.judge(frame(curves, (0, 1), 0.0, BATCHES), {}).state == "not reproduced"


def test_sweeps_that_they_cannot_judge():
    same = frame(dict.fromkeys("ab", SIZES), columns={a: {"steps": 400, "batch_size": 16} for a in "ab"})
    with pytest.raises(ConfigError, match="finding steps compares arms of different steps, this sweep has a, b"):
        steps.judge(same, {})
    with pytest.raises(ConfigError, match="compares arms of different batch_size"):
        batch_size.judge(same.drop(columns="arm"), {})
    more = {"one": {"batch_size": 16, "steps": 400}, "two": {"batch_size": 32, "steps": 400}}
    with pytest.raises(ConfigError, match="constant data, these arms see 6,400 and 12,800 sequences"):
        batch_size.judge(frame(dict.fromkeys(more, SIZES), columns=more), {})


def test_figures():
    runs = frame(dict.fromkeys("abc", SIZES), (0, 1), 0.01, STEPS)
    figure = steps.draw(runs, {})["loss_against_lr"]
    assert [axes.get_title() for axes in figure.axes] == ["N = 25k", "N = 98k", ""]
    # One scale for all sizes, with every loss in it.
    low, high = figure.axes[0].get_ylim()
    assert figure.axes[1].get_ylim() == (low, high)
    assert low < 4.7
    assert high > 5.2
    assert figure.axes[0].lines[0].get_xdata().tolist() == pytest.approx(LRS)
    assert set(batch_size.draw(frame(dict.fromkeys(BATCHES, SIZES), columns=BATCHES), {})) == {"loss_against_lr"}
