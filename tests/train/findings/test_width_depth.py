import math

import pandas as pd
import pytest

from conf.axis import ConfigError
from tests.train.findings.frames import curve, frame, passed, without
from train.findings.claims import width_depth
from train.findings.claims.width_depth import DEPTH, JOINT, WIDTH, WITHOUT, at
from train.findings.trends import Value

LRS = (1e-2, 1e-1, 1.0)
SIZES, JOINT_SIZES = (50_000, 200_000, 800_000), (25_000, 100_000, 600_000)


def ladder(sizes, best, sensitivity):
    """Curves of these best losses and LR sensitivities."""
    return {n: curve(LRS, (b, b, b + 3 * s)) for n, b, s in zip(sizes, best, sensitivity, strict=True)}


LADDERS = {
    WIDTH: ladder(SIZES, (5.2, 5.0, 4.8), (0.2, 0.2, 0.2)),
    DEPTH: ladder(SIZES, (5.1, 4.9, 4.7), (0.1, 0.2, 0.4)),
    JOINT: ladder(JOINT_SIZES, (5.2, 5.0, 4.5), (0.2, 0.2, 0.2)),
}
FLAT = dict.fromkeys(LADDERS, LADDERS[WIDTH])
LOGITS = {n: (z, 10 * z) for n, z in zip(SIZES, (20, 60, 180), strict=True)}


def sweep(ladders=LADDERS, logits=LOGITS, seeds=(0,), noise=0.0):
    broken = frame({arm: {n: curve(LRS[:2], (5.0, 5.5)) for n in SIZES} for arm in WITHOUT})
    values = [logits[n][LRS.index(lr)] for n, lr in zip(broken["size"], broken["optimizer.lr"], strict=True)]
    return pd.concat([frame(ladders, seeds, noise), broken.assign(logit_max=values)], ignore_index=True)


def judge(*of, **more):
    return width_depth.judge(sweep(*of, **more), {})


def test_reproduced_with_hand_computed_numbers():
    verdict = judge()
    assert verdict.state == "reproduced"
    faster, lower, joint, logits = (check.numbers for check in verdict.checks)
    # Sensitivity 0.1 to 0.4 over a factor of 16 in N.
    assert faster["slopes"][DEPTH]["value"] == pytest.approx(0.5)
    assert faster["slopes"][WIDTH]["value"] == pytest.approx(0)
    assert (lower["N"], lower["lower_by"][WIDTH]["value"]) == (800_000, pytest.approx(0.1))
    # At N = 600k the other two, straight in log N, are 0.2 log(8/6) / log 4 above their last point.
    assert (joint["N"], joint["measured_at_N"]) == (600_000, {JOINT: True, WIDTH: False, DEPTH: False})
    above = 0.2 * math.log(8 / 6) / math.log(4)
    assert joint["lower_by"][WIDTH]["value"] == pytest.approx(0.3 + above)
    assert joint["lower_by"][DEPTH]["value"] == pytest.approx(0.2 + above)
    assert logits["ladders"][WITHOUT[0]]["growth"] == pytest.approx(9)
    assert logits["ladders"][WITHOUT[0]]["above"] == {50_000: 0, 200_000: 0, 800_000: 1}


def test_between_sizes_a_parabola_and_near_one_itself():
    points = {n: Value(math.log(n) ** 2, 0.01) for n in SIZES}
    assert at(points, 400_000).value == pytest.approx(math.log(400_000) ** 2)
    assert at(points, 400_000).error > 0.01 / 3**0.5
    assert at(points, 790_000) == points[800_000]
    assert at({50_000: Value(5.0, 0.1), 200_000: Value(4.0, 0.1)}, 100_000).value == pytest.approx(4.5)


@pytest.mark.parametrize(("seeds", "noise"), [((0,), 0.0), ((0, 1), 0.01)])
def test_negative_control_equal_ladders(seeds, noise):
    verdict = judge(FLAT, dict.fromkeys(SIZES, (20, 200)), seeds=seeds, noise=noise)
    assert passed(verdict) == [None, None, None, False]
    assert verdict.state == "not reproduced"


def test_turned_ladders_fail():
    turned = LADDERS | {WIDTH: LADDERS[DEPTH], DEPTH: LADDERS[WIDTH]}
    assert passed(judge(turned)) == [False, False, True, True]
    worst = LADDERS | {JOINT: ladder(JOINT_SIZES, (5.4, 5.2, 5.0), (0.2,) * 3)}
    assert passed(judge(worst)) == [True, True, False, True]


def test_logits_must_grow_and_fail_no_less_often():
    assert passed(judge(logits={n: (20 + i, 200) for i, n in enumerate(SIZES)}))[3] is False
    assert passed(judge(logits=dict(zip(SIZES, ((5, 1100), (30, 900), (90, 900)), strict=True))))[3] is False


def test_missing_runs_and_wrong_arms():
    assert passed(width_depth.judge(without(sweep(), arm=JOINT, size=25_000), {})) == [True, True, None, True]
    assert passed(width_depth.judge(without(sweep(), arm=WIDTH), {})) == [None, None, None, True]
    assert passed(width_depth.judge(without(sweep(), arm=WITHOUT[1], size=50_000), {})) == [True, True, True, None]
    with pytest.raises(ConfigError, match="needs the arms width, depth, joint"):
        width_depth.judge(frame({WIDTH: LADDERS[WIDTH]}), {})


def test_figures():
    assert set(width_depth.draw(sweep(), {})) == {"loss_against_lr", "over_size"}
