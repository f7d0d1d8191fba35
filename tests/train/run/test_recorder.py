"""Reduction of metrics over devices."""

import os

import pytest
import torch
import torch.distributed as dist

from tests.train.run.pair import in_pair
from train.run.recorder import MetricsRow, Recorder, summarize

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


def test_a_bound_over_heads_is_the_largest() -> None:
    row = summarize({"step": 0, "attention/block0/weight_bound": [1.0, 3.0], "attention/block0/q_norm": [1.0, 3.0]})
    assert (row["attention/block0/weight_bound"], row["attention/block0/q_norm"]) == (3.0, 2.0)
