import math

import numpy as np
import pandas as pd
import pytest

from train.results.sensitivity import coupled_lr_sensitivity, lr_sensitivity, of_runs, over_seeds

PAPER_LRS = [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]


@pytest.mark.parametrize(
    ("losses", "loss_init", "expected"),
    [
        # Output Embedding Centering (arXiv 2601.02031), 16M without z-loss; its tables divide by 6 in place of 7.
        ([3.961, 3.881, 3.850, 3.841, 3.857, 4.269, 5.065], 10.84, 0.262),
        ([3.961, 3.878, 3.848, 3.836, 3.841, 3.854, 3.955], 10.84, 0.046),
    ],
)
def test_published_curves(losses, loss_init, expected):
    found = lr_sensitivity(PAPER_LRS, losses, loss_init)
    assert found.sensitivity == pytest.approx(expected, abs=5e-4)
    assert (found.best_loss, found.best_lr) == (min(losses), 1e-2)


def test_plain_mean_over_all_points():
    # (1 + 0 + 2) / 3, not / 2
    assert lr_sensitivity([1e-3, 1e-2, 1e-1], [3.0, 2.0, 4.0], 9.0).sensitivity == pytest.approx(1.0)


@pytest.mark.parametrize("broken", [None, math.nan, math.inf, 8.0, 1e6])
def test_a_diverged_run_counts_as_the_loss_at_init(broken):
    found = lr_sensitivity([1e-3, 1e-2, 1e-1], [3.0, 2.0, broken], 8.0)
    assert found.losses == (3.0, 2.0, 8.0)
    assert found.sensitivity == pytest.approx((1 + 0 + 6) / 3)
    assert found.first_diverging_lr == found.first_degraded_lr == 1e-1


def test_order_of_the_grid_does_not_matter():
    lrs, losses = np.array(PAPER_LRS), np.array([5.0, 4.0, 3.0, 2.9, 3.5, np.nan, 9.0])
    order = np.random.default_rng(0).permutation(7)
    one = lr_sensitivity(lrs.tolist(), losses.tolist(), 8.0)
    assert lr_sensitivity(lrs[order].tolist(), losses[order].tolist(), 8.0) == one
    assert one.first_diverging_lr == 1e-1
    assert one.lrs == tuple(PAPER_LRS)


def test_divergence_below_the_best_lr_is_not_the_first():
    found = lr_sensitivity([1e-3, 1e-2, 1e-1], [None, 2.0, 2.05], 8.0)
    assert found.first_diverging_lr is None
    assert found.first_degraded_lr is None
    assert found.critical_lr is None


def test_first_degraded_lr_and_the_crossing():
    # Best 2.0 at 1e-2; the line from (1e-2, 2.0) to (1e-1, 2.4) is at 2.1 after a quarter of a decade.
    found = lr_sensitivity([1e-3, 1e-2, 1e-1, 1.0], [3.0, 2.0, 2.4, 5.0], 8.0)
    assert found.first_degraded_lr == 1e-1
    assert found.critical_lr == pytest.approx(10 ** (-2 + 0.25))
    assert found.degraded == (False, False, True, True)


def test_the_crossing_starts_from_the_last_good_point():
    # 2.05 at 1e-1 is within the margin; from there to 2.25 at 1 the line is at 2.1 after a quarter of a decade.
    found = lr_sensitivity([1e-2, 1e-1, 1.0], [2.0, 2.05, 2.25], 8.0)
    assert found.critical_lr == pytest.approx(10 ** (-1 + 0.25))


def test_chance_everywhere_scores_zero():
    found = lr_sensitivity([1e-2, 1e-1], [None, 12.0], 8.0)
    assert (found.sensitivity, found.best_loss, found.first_diverging_lr) == (0.0, 8.0, 1e-2)


@pytest.mark.parametrize(
    ("lrs", "losses", "init"),
    [([], [], 8), ([1e-3], [1, 2], 8), ([1e-3, 1e-3], [1, 2], 8), ([0.0, 1e-3], [1, 2], 8), ([1e-3], [1], math.nan)],
)
def test_impossible_grids(lrs, losses, init):
    with pytest.raises(ValueError, match=r"learning rates|loss at init"):
        lr_sensitivity(lrs, losses, init)


def test_coupled_decay_takes_the_better_window():
    # Without the largest LR: best 2, (2 + 1 + 0) / 3; without the smallest: (1 + 0 + 4) / 3.
    lrs, losses = [1e-4, 1e-3, 1e-2, 1e-1], [4.0, 3.0, 2.0, 6.0]
    assert coupled_lr_sensitivity(lrs, losses, 8.0) == pytest.approx(1.0)
    assert coupled_lr_sensitivity(lrs, [7.0, 3.0, 2.0, 2.5], 8.0) == pytest.approx((1 + 0 + 0.5) / 3)


def runs(*seeds):
    return pd.DataFrame(
        [
            {"seed": seed, "optimizer.lr": lr, "validation/loss_final": loss, "validation/loss_init": 8.0}
            for seed, losses in enumerate(seeds)
            for lr, loss in zip([1e-3, 1e-2, 1e-1], losses, strict=False)
        ]
    )


def test_seeds():
    # Sensitivities 1.0, 2.0, 3.0: mean 2, sample standard deviation 1.
    found = of_runs(runs([3, 2, 4], [4, 2, 6], [5, 2, None]))
    assert [s.sensitivity for s in found.by_seed.values()] == pytest.approx([1.0, 2.0, 3.0])
    assert (found.mean, found.std) == (pytest.approx(2.0), pytest.approx(1.0))
    assert found.median("first_degraded_lr") == pytest.approx(1e-1)


def test_one_seed_has_no_spread():
    assert of_runs(runs([3, 2, 4])).std is None


def test_median_lr_where_some_seeds_never_degrade():
    ok, bad = [3, 2, 2.05], [3, 2, 4]
    assert of_runs(runs(ok, bad, bad)).median("first_degraded_lr") == pytest.approx(1e-1)
    assert of_runs(runs(ok, ok, bad)).median("first_degraded_lr") is None


def test_other_grid_at_another_seed():
    with pytest.raises(ValueError, match=r"seed 1 has \[0.001, 0.01\], seed 0 has"):
        of_runs(runs([3, 2, 4], [3, 2]))
    with pytest.raises(ValueError, match="no seeds"):
        over_seeds({}, {}, {})


def test_from_the_best_lr_up_and_the_range_within_the_margin():
    """(0 + 0.4 + 3) / 3 from the best one up, of a curve that starts slowly."""
    found = lr_sensitivity([1e-4, 1e-3, 1e-2, 1e-1, 1.0], [6.0, 2.2, 2.0, 2.4, 5.0], 8.0)
    assert found.upper == pytest.approx(3.4 / 3)
    assert found.sensitivity == pytest.approx(7.6 / 5)
    # 2.1 lies halfway between the second and third point, and a quarter of the way to the fourth.
    assert found.good_range == pytest.approx((10**-2.5, 10**-1.75))
