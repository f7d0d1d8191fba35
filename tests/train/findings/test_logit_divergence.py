import math

import numpy as np
import pandas as pd
import pytest

from conf.axis import ConfigError
from tests.train.findings.frames import curve, frame, passed, without
from train.findings.claims import logit_divergence

LRS = (1e-2, 1e-1, 1.0)
N = 25_000
LOSSES = {"neither": (5.0, 4.9, 5.5), "z-loss": (5.0, 4.9, 5.0), "decay": (5.0, 4.9, 5.0)}
# log^2 Z early on, in the middle and at the end; |mean logit| is a tenth of its root.
LOG_Z2 = {"neither": (50, 100, 10_000), "z-loss": (50, 60, 100), "decay": (50, 80, 400)}


def rows(levels, factor, sign=1):
    """Watched every 10 of 1,000 steps, geometric between the levels; the head grows by 2 in the second half, the gains
    of the final norm by 1.5."""
    steps = np.arange(0, 1001, 10)
    log = np.interp(steps, (100, 500, 950), np.log(levels))
    late = np.interp(steps, (500, 950), (0, 1))
    z2 = np.exp(log) * factor ** np.interp(steps, (100, 950), (0, 1))
    mean = sign * np.sqrt(z2) / 10
    return pd.DataFrame(
        {"step": steps, "train/loss": 5.0, "output/log_z_squared": z2, "output/logit_mean": mean,
         "parameter/head/rms": 2**late, "parameter/final_norm/rms": 1.5**late}
    )  # fmt: skip


def sweep(levels=LOG_Z2, losses=LOSSES, seeds=(0, 1, 2), spread=1.0, lrs=LRS):
    """Factors spread, 1, 1 / spread on what log^2 Z grows by in the seeds, whose mean logits differ in sign; at lower
    LRs nothing grows."""
    runs = frame({arm: {N: curve(lrs, loss[-len(lrs) :])} for arm, loss in losses.items()}, seeds)
    metrics = {}
    for row in runs.to_dict("records"):
        at = levels[row["arm"]] if row["optimizer.lr"] == max(lrs) else (50, 50, 50)
        metrics[row["run"]] = rows(at, spread ** (1 - row["seed"]), sign=1 - 2 * (row["seed"] % 2))
    return runs, metrics


def judge(**more):
    return logit_divergence.judge(*sweep(**more))


def test_reproduced_with_hand_computed_numbers():
    verdict = judge()
    assert verdict.state == "reproduced"
    late, mean, z_loss, decay, costs = (check.numbers["sizes"][0] for check in verdict.checks)
    # Windows are 5% of the run, so their means are a few percent off the levels.
    assert late["factor"] == pytest.approx(200, rel=0.2)
    assert late["late_factor"] == pytest.approx(100, rel=0.3)
    assert late["end"] == pytest.approx(10_000, rel=0.1)
    assert mean["factor"] == pytest.approx(200**0.5, rel=0.2)
    assert z_loss["factor"] == pytest.approx(100, rel=0.1)
    assert decay["factor"] == pytest.approx(25, rel=0.1)
    assert costs["without"] == pytest.approx(0.7 / 3)
    assert costs["with"] == pytest.approx(0.2 / 3)
    assert costs["cost_at_largest_lr"] == pytest.approx(0.5)


def test_what_the_growth_is_made_of():
    note = next(n for n in judge().notes if "neither" in n)
    numbers = [float(part.split()[0].rstrip(",")) for part in note.split(" x ")[1:]]
    # log Z x 10 = head x 2, gains x 1.5, the rest x 3.3, up to the windows' width.
    assert numbers == pytest.approx([10, 2, 1.5, 10 / 3], rel=0.2)
    assert numbers[0] == pytest.approx(math.prod(numbers[1:]), rel=0.01)


@pytest.mark.parametrize("spread", [1.0, 2.0])
@pytest.mark.parametrize("arm", LOG_Z2)
def test_negative_control_equal_arms(arm, spread):
    verdict = judge(levels=dict.fromkeys(LOG_Z2, LOG_Z2[arm]), losses=dict.fromkeys(LOSSES, LOSSES[arm]), spread=spread)
    assert verdict.state != "reproduced"
    results = passed(verdict)
    assert results[2] is not True
    assert results[3] is None
    assert results[4] is False


def test_growth_in_the_first_half_is_not_late():
    early = judge(levels=LOG_Z2 | {"neither": (50, 10_000, 10_000)})
    assert passed(early) == [False, True, True, True, True]


def test_no_growth_fails():
    assert passed(judge(levels=LOG_Z2 | {"neither": (50, 50, 50)}))[:3] == [False, False, False]


def test_decay_that_does_not_help_a_small_model_leaves_open():
    verdict = judge(levels=LOG_Z2 | {"decay": (50, 100, 10_000)})
    assert passed(verdict) == [True, True, True, None, True]
    assert verdict.checks[3].text.startswith("not prevented, which the paper says of larger models only")


def test_seeds_that_differ_as_much_as_arms_leave_open():
    assert passed(judge(spread=30.0))[0] is None


def test_two_lrs_are_no_curve():
    verdict = judge(lrs=LRS[1:])
    assert passed(verdict) == [True, True, True, True, None]


def test_missing_runs_leave_open_what_needs_them():
    runs, metrics = sweep()
    verdict = logit_divergence.judge(without(runs, arm="z-loss", lr=1.0, seed=0), metrics)
    assert passed(verdict) == [True, True, None, True, None]
    assert passed(logit_divergence.judge(runs.assign(ended=False), metrics)) == [None] * 5


def test_wrong_arms():
    runs, metrics = sweep()
    with pytest.raises(ConfigError, match="needs the arms neither, z-loss, decay"):
        logit_divergence.judge(runs[runs["arm"] != "decay"], metrics)


def test_figures():
    figures = logit_divergence.draw(*sweep())
    assert list(figures) == ["output_logits_in_time", "loss_against_lr"]
    assert [len(axes.lines) for axes in figures["output_logits_in_time"].axes] == [9] * 4
