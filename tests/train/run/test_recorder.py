"""Reduction of metrics over devices."""

import math
import os

import pytest
import torch
import torch.distributed as dist

from tests.train.run.pair import in_pair
from train.loggers.detail import sent
from train.run.recorder import MetricsRow, Recorder, first_nonfinite, summarize

# Per rank and step: two heads' largest logits and their cosines. In step 1, both ranks have head 1's logit.
LOGITS = [[[5.0, 1.0], [2.0, 3.0]], [[4.0, 7.0], [6.0, 3.0]]]
COSINES = [[[0.5, 0.1], [0.2, 0.3]], [[0.4, 0.7], [0.6, 0.5]]]


def reduced() -> list[MetricsRow]:
    """Returns the rows of one of two ranks, whose statistics include others around those of the largest logit."""
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    recorder = Recorder()
    for step in range(2):
        stats = {
            "train/loss": torch.tensor(1.0 + rank),
            "attention/block0/logit_max": torch.tensor(LOGITS[rank][step]),
            "attention/block0/cosine_of_max_pair": torch.tensor(COSINES[rank][step]),
            "gradient/head/rms": torch.tensor(3.0 + 4 * rank),
            "state/block0/decay_min": torch.tensor(0.2 + 0.5 * rank),
            "router/block0/load": torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.25, 0.75]][rank]),
        }
        recorder.add({"step": step}, stats)
    rows = recorder.flush()
    dist.destroy_process_group()
    return rows


def test_cosines_are_those_of_the_device_with_the_largest_logit() -> None:
    for rows in in_pair(reduced):
        cosines = [row["attention/block0/cosine_of_max_pair_by_head"] for row in rows]
        assert cosines == [pytest.approx([0.5, 0.7]), pytest.approx([0.6, 0.4])]
        assert [row["attention/block0/cosine_of_max_pair"] for row in rows] == [pytest.approx(0.6), pytest.approx(0.5)]
        assert [row["attention/block0/logit_max_by_head"] for row in rows] == [[5, 7], [6, 3]]
        assert [row["train/loss"] for row in rows] == [1.5, 1.5]
        assert rows[0]["gradient/head/rms"] == pytest.approx((29) ** 0.5)
        assert rows[0]["state/block0/decay_min"] == pytest.approx(0.2)
        assert rows[0]["router/block0/load_max"] == pytest.approx(0.375), "that of the whole batch"


@pytest.mark.parametrize("values", [[math.nan, 3.0], [3.0, math.nan]])
def test_nan_of_one_block_or_head_is_not_hidden(values: list[float]) -> None:
    adam = {f"adam/{t}/gradient_over_eps": v for t, v in zip(("head", "embedding"), values, strict=True)}
    logits = {f"attention/block{i}/logit_max": of for i, of in enumerate((values[:1], values[1:], values))}
    row = summarize({**logits, "attention/block0/entropy": values, **adam})
    blocks = ("attention/logit_max", "attention/block2/logit_max", "attention/entropy_min")
    assert all(math.isnan(row[name]) for name in (*blocks, "adam/gradient_over_eps_min"))
    assert row["attention/block0/logit_max"] is values[0]
    shown, _ = sent(adam)
    assert math.isnan(shown["adam/gradient_over_eps"])


def test_a_bound_over_heads_is_the_largest() -> None:
    row = summarize({"step": 0, "attention/block0/weight_bound": [1.0, 3.0], "attention/block0/q_norm": [1.0, 3.0]})
    assert (row["attention/block0/weight_bound"], row["attention/block0/q_norm"]) == (3.0, 2.0)


def test_over_heads_blocks_and_tensors_by_hand() -> None:
    row = summarize(
        {
            "step": 0,
            "attention/block0/entropy": [1.0, 3.0], "attention/block1/entropy": [5.0, 7.0],
            "attention/block0/sink_rate": [0.0, 0.5], "attention/block1/sink_rate": [0.25, 0.75],
            "attention/block0/logit_max": [9.0, 2.0], "attention/block1/logit_max": [4.0, 3.0],
            "router/block0/load": [0.5, 0.3, 0.2],
            "adam/head/gradient_over_eps": 5.0, "adam/block0/mlp.up/gradient_over_eps": 2.0,
        }
    )  # fmt: skip
    assert (row["attention/block0/entropy"], row["attention/block1/entropy"]) == (2, 6)
    assert (row["attention/entropy"], row["attention/entropy_min"]) == (4, 1)
    assert (row["attention/sink_rate"], row["attention/logit_max"]) == (0.375, 9)
    assert (row["router/block0/load_max"], row["router/block0/load_by_head"]) == (0.5, [0.5, 0.3, 0.2])
    assert row["adam/gradient_over_eps_min"] == 2


def test_the_first_step_that_is_not_finite() -> None:
    sound = [
        {"step": -1, "validation/loss": 5.0},
        *({"step": i, "train/loss": 3.0, "gradient/norm": 1.0} for i in (0, 1)),
    ]
    nan, inf = float("nan"), float("inf")
    assert first_nonfinite(sound) is None
    assert first_nonfinite([*sound, {"step": 2, "train/loss": inf, "gradient/norm": 1.0}]) == 2
    assert first_nonfinite([*sound, {"step": 2, "train/loss": 3.0, "gradient/norm": nan}]) == 2
    # An infinite gradient is clipped to zero.
    assert first_nonfinite([*sound, {"step": 2, "train/loss": 3.0, "gradient/norm": inf}]) is None
