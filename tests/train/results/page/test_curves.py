import base64
import math

import numpy as np
import pytest

from tests.train.results.page.many import rows
from train.results.page.curves import LEAST_POINTS, curves, pack, pack_integers, pool, thin


def words(text):
    found = np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(-1, 3).astype(np.uint32)
    return found[:, 0] | found[:, 1] << 8 | found[:, 2] << 16


def unpacked(text):
    return (words(text) << 8).astype("<u4").view("<f4")


def steps(text):
    return words(text).astype(np.int64) - 1


def test_pack_keeps_sixteen_bits_and_what_is_not_finite():
    values = np.array([0.0, 1.0, -2.5, 3.14159265, 1e-30, 7.77e30, math.inf, -math.inf, math.nan])
    back = unpacked(pack(values))
    assert back[:6] == pytest.approx(values[:6], rel=2**-16)
    assert (back[6], back[7]) == (math.inf, -math.inf)
    assert math.isnan(back[8])
    assert len(pack(values)) == 4 * len(values)


def test_pack_of_steps_is_exact():
    values = np.array([-1, 0, 399, 65_537, 99_999, 2**24 - 2])
    assert steps(pack_integers(values)).tolist() == values.tolist()


@pytest.mark.parametrize("length", [201, 399, 400, 1_000, 99_999])
def test_thin_keeps_ends_and_extremes(length):
    noise = np.random.default_rng(length)
    x, y = 10 * np.arange(length), noise.standard_normal(length)
    y[length // 3], y[length // 2] = 1e6, -1e6
    thin_x, thin_y = thin(x, y, 200)
    assert 100 <= len(thin_x) <= 200
    assert (thin_x[0], thin_x[-1]) == (0, x[-1])
    assert (np.diff(thin_x) > 0).all()
    assert y[thin_x // 10].tolist() == thin_y.tolist()
    assert thin_x[thin_y.argmax()] == x[length // 3]
    assert thin_x[thin_y.argmin()] == x[length // 2]


def test_thin_leaves_a_short_curve_as_it_is():
    x, y = np.arange(200), np.arange(200.0)
    assert [a.tolist() for a in thin(x, y, 200)] == [x.tolist(), y.tolist()]


def test_pool_takes_the_worst_of_a_stretch():
    values = np.array([[1.0, 5.0], [3.0, math.nan], [2.0, math.inf], [math.nan, 4.0], [math.nan, 7.0]])
    start, most = pool(np.arange(5), values, 2, "max")
    assert start.tolist() == [0, 2, 4]
    assert most[:2].tolist() == [[3.0, 5.0], [2.0, 4.0]]
    assert math.isnan(most[2, 0])
    assert most[2, 1] == 7.0
    assert pool(np.arange(5), values, 2, "min")[1][0].tolist() == [1.0, 5.0]


def test_curves_are_the_metrics():
    recorded = rows(steps=150, blocks=2, heads=3, watch_every=10)
    found = curves(recorded)
    by_label = {(chart, label): (steps(found["x"][x]), unpacked(y)) for chart, series in found["curves"].items()
                for label, x, y in series}  # fmt: skip
    x, y = by_label["loss", "batch"]
    assert x.tolist() == list(range(150))
    assert y == pytest.approx([row["train/loss"] for row in recorded[1:]], rel=2**-16)
    assert [a.tolist() for a in by_label["loss", "validation"]] == [[-1], [pytest.approx(8.1, rel=2**-16)]]
    watched = [row for row in recorded if "gradient/norm" in row]
    for label, metric in {
        ("logit", "block 1"): "attention/block1/logit_max", ("entropy", "block 0"): "attention/block0/entropy",
        ("output", "log Z"): "output/log_z", ("norm", "before clipping"): "gradient/norm",
        ("gradient", "block 1"): "adam/block1/mlp.up/gradient_over_eps",
    }.items():  # fmt: skip
        assert by_label[label][1] == pytest.approx([row[metric] for row in watched], rel=2**-16)
        assert by_label[label][0].tolist() == list(range(0, 150, 10))
    label, x, heads, stretch, packed = found["heads"]["entropy"][1]
    assert (label, heads, stretch, steps(found["x"][x]).tolist()) == ("block 1", 3, 1, [*range(0, 150, 10), 140])
    expected = np.array([row["attention/block1/entropy_by_head"] for row in watched])
    np.testing.assert_allclose(unpacked(packed).reshape(3, 15).T, expected, rtol=2**-16)


def test_blocks_are_in_order_of_depth():
    row = {"step": 0, **{f"attention/block{i}/logit_max": 1.0 for i in (10, 2, 0)}}
    assert [series[0] for series in curves([row])["curves"]["logit"]] == ["block 0", "block 2", "block 10"]


def test_the_least_gradient_of_a_block_counts():
    row = {"step": 0, "adam/block0/mlp.up/gradient_over_eps": 3.0, "adam/block0/attention.out/gradient_over_eps": 2.0,
           "adam/block0/mlp.down/gradient_over_eps": math.nan, "adam/head/gradient_over_eps": 1.0}  # fmt: skip
    assert unpacked(curves([row])["curves"]["gradient"][0][2]).tolist() == [2.0]


def test_a_loss_that_breaks_is_no_point_but_is_marked():
    found = curves([{"step": i, "train/loss": loss} for i, loss in enumerate([3.0, 4.0, math.nan, math.inf])])
    assert found["broken"] == 2
    assert unpacked(found["curves"]["loss"][0][2]).tolist() == [3.0, 4.0]


def test_a_share_makes_curves_coarser():
    recorded = rows(steps=2000, blocks=2, heads=4)
    full, half, least = (curves(recorded, share) for share in (math.inf, 12_000, 1))
    sizes = [
        sum(len(text) for series in found["curves"].values() for *_, text in series) for found in (full, half, least)
    ]
    assert sizes[0] > 1.5 * sizes[1] > sizes[2]
    assert len(least["curves"]["loss"][0][2]) == len(full["curves"]["loss"][0][2]) > 4 * LEAST_POINTS
    rest = [packed for chart, series in least["curves"].items() if chart != "loss" for *_, packed in series]
    assert max(map(len, rest)) <= 4 * LEAST_POINTS
    stretches = [found["heads"]["logit"][0][3] for found in (full, half, least)]
    assert stretches[0] == 2 < stretches[1] <= stretches[2]


def test_a_run_without_metrics():
    assert curves([]) == {"x": [], "curves": {}, "heads": {}, "broken": None}
