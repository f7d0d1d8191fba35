import math
from itertools import pairwise

import pytest

from conf.axis import ConfigError
from tests.conftest import choice, tiny
from train.optimizers.schedules import SCHEDULE, Cosine, ScheduleConfig

PEAK = 1e-2


def cosine(**changes: float | None) -> Cosine:
    made = choice(SCHEDULE, "cosine", **changes)
    assert isinstance(made, Cosine)
    return made


def lrs(schedule: ScheduleConfig, steps: int, peak: float = PEAK) -> list[float]:
    return [peak * schedule.factor(step, steps=steps, peak=peak) for step in range(steps)]


@pytest.mark.parametrize("peak", [3e-4, 1e-2, 3e-1])
def test_the_paper_s_schedule(peak: float) -> None:
    """1e5 steps: 5e3 of linear warm-up, then a cosine to an LR of 1e-5. Wortsman et al. 2023, section 2.1."""
    steps, schedule = 100_000, cosine()

    def lr(step: int) -> float:
        return peak * schedule.factor(step, steps=steps, peak=peak)

    assert lr(0) == pytest.approx(peak / 5000)
    assert lr(2499) == pytest.approx(peak / 2)
    assert lr(4999) == pytest.approx(peak)
    assert lr(5000) == pytest.approx(peak)
    assert lr(5000 + 94_999) == pytest.approx(1e-5)
    middle = 5000 + 94_999 / 2
    assert (lr(math.floor(middle)) + lr(math.ceil(middle))) / 2 == pytest.approx((peak + 1e-5) / 2)
    # At a quarter of the decay: cos(pi/4).
    assert lr(5000 + 94_999 // 4) == pytest.approx(1e-5 + (peak - 1e-5) * (1 + math.sqrt(0.5)) / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("steps", "warmup_steps"), [(s, w) for s in (1, 2, 3, 20, 400) for w in (0, 1, 7, 20) if w <= s]
)
def test_shape(steps: int, warmup_steps: int) -> None:
    """Rises in equal steps to the peak, then never rises again; stays within [0, peak]."""
    found = lrs(cosine(warmup_steps=warmup_steps), steps)
    assert found[:warmup_steps] == pytest.approx([PEAK * (i + 1) / warmup_steps for i in range(warmup_steps)])
    decay = found[max(warmup_steps - 1, 0) :]
    assert all(a >= b for a, b in pairwise(decay))
    assert max(found) == pytest.approx(PEAK)
    assert all(0 < lr <= PEAK * (1 + 1e-12) for lr in found)


def test_the_last_step_runs_at_the_minimum() -> None:
    for minimum in (0.0, 1e-5, 1e-3):
        for peak in (1e-2, 0.3):
            assert lrs(cosine(min_lr=minimum), 50, peak)[-1] == pytest.approx(minimum, abs=1e-18)


def test_minimum_equal_to_the_peak_is_constant() -> None:
    assert lrs(cosine(min_lr=PEAK, warmup_steps=0), 10) == pytest.approx([PEAK] * 10)


@pytest.mark.parametrize(
    ("steps", "fraction", "expected"), [(400, 0.05, 20), (100_000, 0.05, 5000), (10, 0.25, 2), (3, 0, 0)]
)
def test_warmup_as_a_fraction(steps: int, fraction: float, expected: int) -> None:
    assert cosine(warmup_fraction=fraction).warmup(steps) == expected


def test_warmup_in_steps_takes_the_place_of_the_fraction() -> None:
    assert cosine(warmup_fraction=0.5, warmup_steps=3).warmup(100) == 3
    assert cosine(warmup_fraction=0.5, warmup_steps=0).warmup(100) == 0


def test_no_warmup_starts_at_the_peak() -> None:
    assert lrs(cosine(warmup_steps=0), 20)[0] == PEAK


def test_warmup_may_fill_the_run() -> None:
    cosine(warmup_steps=20).fits(steps=20, peak=PEAK)
    assert lrs(cosine(warmup_steps=20), 20)[-1] == PEAK


def test_warmup_longer_than_the_run_is_refused() -> None:
    text = r"schedule\.warmup_steps=21 is longer than the run, steps=20: shorten the warm-up or raise steps"
    with pytest.raises(ValueError, match=text):
        cosine(warmup_steps=21).fits(steps=20, peak=PEAK)
    with pytest.raises(ConfigError, match=text):
        tiny("steps=20", "schedule.warmup_steps=21")


def test_minimum_above_the_peak_is_refused() -> None:
    text = r"schedule\.min_lr=0\.1 is above optimizer\.lr=0\.01: lower it, for instance to 0"
    with pytest.raises(ValueError, match=text):
        cosine(min_lr=0.1).fits(steps=20, peak=PEAK)
    with pytest.raises(ConfigError, match=text):
        tiny("schedule.min_lr=0.1", "optimizer.lr=0.01")


@pytest.mark.parametrize("name", sorted(SCHEDULE.choices))
def test_every_schedule_stays_in_zero_to_one_and_is_a_function_of_the_step(name: str) -> None:
    schedule = choice(SCHEDULE, name)
    schedule.fits(steps=50, peak=PEAK)
    factors = [schedule.factor(step, steps=50, peak=PEAK) for step in range(50)]
    assert all(0 <= f <= 1 + 1e-12 for f in factors)
    assert [schedule.factor(step, steps=50, peak=PEAK) for step in reversed(range(50))] == factors[::-1]


@pytest.mark.parametrize("name", sorted(SCHEDULE.choices))
@pytest.mark.parametrize("warmup_steps", [0, 1, 5])
def test_warmup_is_shared(name: str, warmup_steps: int) -> None:
    """Rises in equal steps and reaches the peak at the last step of the warm-up, or at step 0 without a warm-up."""
    found = lrs(choice(SCHEDULE, name, warmup_steps=warmup_steps), 40)
    assert found[:warmup_steps] == pytest.approx([PEAK * (i + 1) / warmup_steps for i in range(warmup_steps)])
    assert found[max(0, warmup_steps - 1)] == PEAK
    assert all(a >= b for a, b in pairwise(found[max(0, warmup_steps - 1) :]))


@pytest.mark.parametrize("name", sorted(SCHEDULE.choices))
def test_warmup_longer_than_the_run_is_refused_by_all(name: str) -> None:
    with pytest.raises(ValueError, match=r"schedule\.warmup_steps=21 is longer than the run, steps=20"):
        choice(SCHEDULE, name, warmup_steps=21).fits(steps=20, peak=PEAK)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("minimum", [0.0, 1e-3])
def test_end_of_a_decay(name: str, minimum: float) -> None:
    schedule = choice(SCHEDULE, name, min_lr=minimum)
    for steps in (7, 50):
        assert lrs(schedule, steps)[-1] == pytest.approx(minimum, abs=1e-18)
    with pytest.raises(ValueError, match=r"schedule\.min_lr=0\.001 is above optimizer\.lr=0\.0001"):
        choice(SCHEDULE, name, min_lr=1e-3).fits(steps=50, peak=1e-4)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
@pytest.mark.parametrize("peak", [1e-6, 1e-2, 0.3])
def test_final_fraction(name: str, peak: float) -> None:
    """The last LR as a share of the peak, whatever min_lr is, which may then exceed the peak."""
    for fraction in (0.0, 0.1, 1.0):
        schedule = choice(SCHEDULE, name, final_fraction=fraction)
        schedule.fits(steps=50, peak=peak)
        for steps in (7, 50):
            assert lrs(schedule, steps, peak)[-1] == pytest.approx(fraction * peak, abs=1e-18)
    same = choice(SCHEDULE, name, min_lr=PEAK / 10), choice(SCHEDULE, name, final_fraction=0.1)
    assert lrs(same[0], 50) == pytest.approx(lrs(same[1], 50), rel=1e-12)


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_final_fraction_beyond_zero_to_one_is_refused(fraction: float) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.final_fraction="):
        tiny(f"schedule.final_fraction={fraction}")


def test_constant() -> None:
    assert lrs(choice(SCHEDULE, "constant", warmup_steps=4), 10)[4:] == [PEAK] * 6


def test_linear() -> None:
    """Ten steps of decay in equal parts, the first at the peak, the last at the minimum."""
    found = lrs(choice(SCHEDULE, "linear", warmup_steps=2, min_lr=1e-3), 12)[2:]
    assert found == pytest.approx([PEAK - (PEAK - 1e-3) * i / 9 for i in range(10)])


def test_rsqrt() -> None:
    """Vaswani et al. 2017, eq. 3: min(step^-0.5, step warmup^-1.5) for steps from 1, scaled to the peak."""
    warmup = 4
    found = lrs(choice(SCHEDULE, "rsqrt", warmup_steps=warmup), 20)
    expected = [PEAK * warmup**0.5 * min(step**-0.5, step * warmup**-1.5) for step in range(1, 21)]
    assert found == pytest.approx(expected)
    assert lrs(choice(SCHEDULE, "rsqrt", warmup_steps=0), 9)[-1] == pytest.approx(PEAK / 3)


@pytest.mark.parametrize(("decay", "middle"), [("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5))])
def test_wsd(decay: str, middle: float) -> None:
    """5 steps of warm-up, 75 at the peak, 20 of decay to the minimum."""
    schedule = choice(SCHEDULE, "wsd", decay=decay, min_lr=0.0)
    found = lrs(schedule, 100)
    assert found[4:80] == [PEAK] * 76
    assert found[80] < PEAK
    assert found[89] == pytest.approx(middle * PEAK)
    assert found[99] == pytest.approx(0, abs=1e-18)


def test_wsd_without_room_for_both_ends_is_refused() -> None:
    text = (
        "schedule.decay_fraction=0.9 and a warm-up of 20 steps are longer than the run, steps=100: shorten one of them"
    )
    with pytest.raises(ConfigError) as error:
        tiny("schedule=wsd", "steps=100", "schedule.warmup_steps=20", "schedule.decay_fraction=0.9")
    assert str(error.value) == text
    choice(SCHEDULE, "wsd", warmup_steps=10, decay_fraction=0.9).fits(steps=100, peak=PEAK)
