import numpy as np
import pandas as pd
import pytest

from conf.axis import ConfigError
from tests.train.findings.frames import frame, passed, without
from train.findings.claims import epsilon

N, LR = 590_000, 0.3
ARMS = {"tiny": {"optimizer.eps": 1e-15}, "near": {"optimizer.eps": 1e-6}, "far": {"optimizer.eps": 1e-4},
        "default": {"optimizer.eps": 1e-8}}  # fmt: skip
LOSSES = {"tiny": 5.0, "near": 5.08, "far": 5.5, "default": 5.0}
# RMS of gradients and of updates at the end of a run.
RMS = {"tiny": (1e-6, 0.2), "near": (5e-7, 0.08), "far": (2e-6, 0.004), "default": (2e-6, 0.19)}


def sweep(losses=LOSSES, rms=RMS, seeds=(0, 1), noise=0.0):
    runs = frame({arm: {N: {LR: loss}} for arm, loss in losses.items()}, seeds, noise, ARMS)
    return runs, {run: rows(arm, rms[arm]) for run, arm in zip(runs["run"], runs["arm"], strict=True)}


def rows(arm, rms):
    """Other values before the last quarter of the run; watched at every other step."""
    step, (gradient, update) = np.arange(101), rms
    late, watched = step >= 75, step % 2 == 0
    ratio = np.where(late, gradient / ARMS[arm]["optimizer.eps"], 1e3)
    return pd.DataFrame(
        {"step": step, "train/loss": 6.0, f"adam/{epsilon.PLACE}/gradient_over_eps": np.where(watched, ratio, np.nan),
         f"update/{epsilon.PLACE}/rms": np.where(watched, np.where(late, update, 1.0), np.nan)}
    )  # fmt: skip


def judge(**more):
    return epsilon.judge(*sweep(**more))


def test_reproduced_with_hand_computed_numbers():
    verdict = judge()
    assert verdict.state == "reproduced"
    updates, smaller, far = (check.numbers for check in verdict.checks)
    assert updates["smallest"]["gradient"] == pytest.approx(1e-6)
    assert {r["eps"]: r["gradient_over_eps"] for r in updates["arms"]} == pytest.approx(
        {1e-8: 200, 1e-6: 0.5, 1e-4: 0.02}
    )
    assert [r["update_over_smallest"] for r in updates["arms"]] == pytest.approx([0.95, 0.4, 0.02])
    assert (smaller["eps"], far["eps"]) == (1e-6, 1e-4)
    assert smaller["gain"]["value"] == pytest.approx(0.08)
    assert far["cost"]["value"] == pytest.approx(0.5)
    assert far["over_gradient"] == pytest.approx(100)


@pytest.mark.parametrize(("seeds", "noise"), [((0, 1), 0.0), ((0, 1, 2), 0.003)])
def test_negative_control_epsilon_without_effect(seeds, noise):
    same = dict.fromkeys(ARMS, RMS["tiny"])
    verdict = judge(losses=dict.fromkeys(ARMS, 5.0), rms=same, seeds=seeds, noise=noise)
    assert passed(verdict) == [False, False, False]


def test_noise_leaves_the_losses_open():
    runs, metrics = sweep(losses=LOSSES | {"far": 5.15})
    apart = runs.assign(**{"validation/loss_final": runs["validation/loss_final"] + 0.2 * (runs["seed"] == 1)})
    assert passed(epsilon.judge(apart, metrics)) == [True, None, None]
    # A standard deviation of 0.2 / sqrt(2) in two seeds each.
    assert epsilon.judge(apart, metrics).checks[1].numbers["gain"]["error"] == pytest.approx(0.2 / 2**0.5)


def test_updates_that_shrink_where_gradients_are_large_fail():
    assert passed(judge(rms=RMS | {"default": (2e-6, 0.1)})) == [False, True, True]


def test_without_an_epsilon_of_the_right_size():
    # Gradients 1000 times the largest epsilon, and as small as the smallest one.
    for gradient in (1e-1, 1e-15):
        verdict = judge(rms=dict.fromkeys(ARMS, (gradient, 0.2)))
        assert passed(verdict)[1:] == [None, None]


def test_a_diverged_run_counts_as_the_loss_at_init():
    runs, metrics = sweep()
    runs.loc[runs["arm"] == "far", "validation/loss_final"] = None
    check = epsilon.judge(runs, metrics).checks[2]
    assert check.numbers["cost"]["value"] == pytest.approx(8.0 - 5.0)


def test_missing_runs_leave_open():
    runs, metrics = sweep()
    verdict = epsilon.judge(without(runs, arm="far", seed=1), metrics)
    assert passed(verdict) == [None, None, None]
    assert verdict.checks[0].text.startswith("1 run missing; so far: ")
    assert epsilon.judge(runs.assign(ended=False), metrics).state == "inconclusive"


def test_wrong_arms():
    runs, metrics = sweep()
    with pytest.raises(ConfigError, match=r"compares arms of different optimizer\.eps"):
        epsilon.judge(runs.assign(**{"optimizer.eps": 1e-8}), metrics)


def test_figure():
    figure = epsilon.draw(*sweep())["loss_gradients_and_updates"]
    # Two seeds an arm, and the epsilons that lie near the gradients.
    assert [len(axes.lines) for axes in figure.axes] == [8, 8 + 3, 8]
