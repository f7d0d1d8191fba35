"""Fits, their choice and their intervals, on curves that are known."""

import math

import numpy as np
import pytest

from train.forecast.fits import (
    FAMILIES,
    Forecast,
    HeldOut,
    Points,
    fit,
    forecaster,
    held_out,
    scale,
)

FAMILY = {family.name: family for family in FAMILIES}
SIZES = np.log10([12e3, 25e3, 49e3, 98e3, 197e3, 590e3, 1.8e6])
LRS = np.log10([6e-3, 1.4e-2, 3e-2, 6e-2])


def points(law, sizes=SIZES, lrs=LRS, noise=0.0, seed=0):
    n, lr = (grid.ravel() for grid in np.meshgrid(sizes, lrs))
    return Points(n, lr, law(n, lr) + noise * np.random.default_rng(seed).standard_normal(len(n)))


def curved(n, lr):
    return 1 - lr + 0.3 * lr * (n - 4) + 0.2 * (n - 4) ** 2


def straight(n, lr):
    return 1 + 0.4 * n + (0.3 + 0.2 * n) * lr


def flat(n, lr):
    return 0.5 + 0.7 * n + 1.2 * lr


def test_a_quadratic_has_its_coefficients_back() -> None:
    fitted = fit(FAMILY["quadratic"], points(curved))
    for lr in LRS:
        expected = [1 - lr - 1.2 * lr + 3.2, 0.3 * lr - 1.6, 0.2]
        assert fitted.coefficients[lr] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "law"), [("line", straight), ("theil-sen", straight), ("surface", straight), ("plane", flat)]
)
def test_power_laws_are_extrapolated_without_error(name: str, law) -> None:
    seen = points(law, SIZES[:4])
    later = points(law, SIZES[4:])
    assert fit(FAMILY[name], seen)(later.n, later.lr) == pytest.approx(later.value, abs=1e-9)


def test_a_plane_takes_the_learning_rates_together() -> None:
    fitted = fit(FAMILY["plane"], points(flat))
    assert fitted.coefficients.keys() == {None}
    assert fitted.coefficients[None] == pytest.approx([0.5, 0.7, 1.2], abs=1e-9)
    unseen = fitted(np.array([7.0]), np.array([-2.2]))
    assert unseen == pytest.approx([0.5 + 4.9 - 2.64], abs=1e-9)


def test_theil_sen_resists_what_moves_least_squares() -> None:
    y = 2 + 0.5 * SIZES
    y[3] += 3
    seen = Points(SIZES, np.zeros(7), y)
    assert fit(FAMILY["theil-sen"], seen).coefficients[0.0] == pytest.approx([2, 0.5], abs=1e-9)
    moved = fit(FAMILY["line"], seen).coefficients[0.0]
    assert abs(moved[1] - 0.5) > 0.05


def test_theil_sen_takes_no_slope_between_two_seeds_of_a_size() -> None:
    seen = Points(np.array([1.0, 1.0, 2.0, 2.0]), np.zeros(4), np.array([1.0, 3.0, 4.0, 6.0]))
    assert fit(FAMILY["theil-sen"], seen).coefficients[0.0][1] == pytest.approx(3.0)


def test_a_learning_rate_with_too_few_sizes_has_no_curve() -> None:
    full = points(straight)
    some = full.where((full.lr != LRS[0]) | (full.n <= SIZES[1]))
    values = {name: fit(FAMILY[name], some)(np.array([7.0]), np.array([LRS[0]]))[0] for name in FAMILY}
    assert math.isnan(values["quadratic"])
    assert all(math.isfinite(values[name]) for name in ("line", "plane", "surface"))


def test_held_out_errors_come_from_smaller_sizes_only() -> None:
    """The value of a size moves forecasts from it on, none from below it, and errors of its own."""
    before, seen = held_out(FAMILY["line"], points(straight, noise=0.1)), points(straight, noise=0.1)
    changed = Points(seen.n, seen.lr, seen.value + 5.0 * (seen.n == SIZES[4]))
    after = held_out(FAMILY["line"], changed)
    same = (before.cut < SIZES[4]) & (before.n != SIZES[4])
    assert (before.error[same] == after.error[same]).all()
    assert (np.abs(before.error - after.error)[~same] > 0.1).all()
    # Cuts at the 2nd to 6th size, each with all larger sizes at 4 learning rates.
    assert len(before) == 4 * (5 + 4 + 3 + 2 + 1)
    assert scale(before)[1] == 4 * 5


@pytest.mark.parametrize(("law", "name"), [(curved, "quadratic"), (flat, "plane")])
def test_the_family_with_the_smallest_held_out_error_is_chosen(law, name: str) -> None:
    model = forecaster(points(law, noise=0.02))
    assert model.family.name == name
    assert model.errors[name] == min(model.errors.values())


def test_a_quadratic_needs_a_fourth_size_to_be_chosen() -> None:
    """All three are needed for it, so none is left to hold out."""
    model = forecaster(points(curved, SIZES[:3]))
    assert model.errors["quadratic"] is None
    assert model.family.name != "quadratic"
    with pytest.raises(ValueError, match="2 sizes"):
        forecaster(points(curved, SIZES[:2]))


def test_intervals_cover_as_they_say() -> None:
    """Errors in proportion to the distance, 400 repetitions of eight held-out points and a forecast."""
    rng, inside = np.random.default_rng(1), {0.5: 0, 0.9: 0}
    cut, n, lr = np.repeat(SIZES[2], 8), np.repeat(SIZES[3:5], 4), np.tile(LRS, 2)
    far = 1.2
    for _ in range(400):
        sigma, df = scale(HeldOut(cut, n, lr, 0.2 * (n - cut) * rng.standard_normal(8)))
        assert df == 8
        forecast = Forecast(2.0, sigma * far, df)
        measured = 2.0 + 0.2 * far * rng.standard_normal()
        for level in inside:
            low, high = forecast.interval(level)
            inside[level] += low <= measured <= high
    assert inside[0.5] / 400 == pytest.approx(0.5, abs=0.05)
    assert inside[0.9] / 400 == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize(("name", "law"), [("line", straight), ("plane", flat), ("quadratic", curved)])
def test_intervals_cover_at_least_that_where_there_is_only_noise(name: str, law) -> None:
    """16 times further in N than the five sizes that are seen; unbiased."""
    at, lr, inside, above = math.log10(16) + SIZES[4], LRS[2], {0.5: 0, 0.9: 0}, 0.0
    truth, noise = float(law(np.array([at]), np.array([lr]))[0]), np.random.default_rng(1)
    for seed in range(100):
        forecast = forecaster(points(law, SIZES[:5], noise=0.1, seed=seed), [FAMILY[name]]).at(at, lr)
        assert forecast is not None
        measured = truth + 0.1 * noise.standard_normal()
        for level in inside:
            low, high = forecast.interval(level)
            inside[level] += low <= measured <= high
        above += forecast.above(truth)
    assert inside[0.5] >= 50
    assert inside[0.9] >= 90
    assert above / 100 == pytest.approx(0.5, abs=0.1)


def test_an_interval_grows_with_the_distance_and_not_below_a_doubling() -> None:
    model = forecaster(points(straight, SIZES[:5], noise=0.1))
    spread = {h: model.at(SIZES[4] + h, LRS[0]).spread for h in (-0.5, 0.0, math.log10(2), 0.5, 1.0)}
    assert spread[1.0] == pytest.approx(model.sigma)
    assert spread[0.5] == pytest.approx(model.sigma / 2)
    assert spread[-0.5] == spread[0.0] == pytest.approx(model.sigma * math.log10(2))


def test_chances_and_intervals_agree() -> None:
    forecast = forecaster(points(straight, noise=0.1)).at(7.0, LRS[0])
    assert forecast is not None
    low, high = forecast.interval(0.9)
    assert forecast.above(low) == pytest.approx(0.95)
    assert forecast.above(high) == pytest.approx(0.05)
    assert forecast.above(forecast.mean) == 0.5
