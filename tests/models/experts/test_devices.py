"""Experts on two devices: the bias of auxiliary-loss-free balancing counts the tokens of both."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.conftest import randn
from tests.models.experts.test_layer import B, D, T, layer
from tests.train.helpers import tiny, trained
from tests.train.run.pair import in_pair, train_each
from tests.train.run.test_sharding import assert_alike
from train.runfolder.folder import RunFolder

STEPS = 3
MOE = ["mlp=moe", "mlp.experts=4", "mlp.score=sigmoid", "mlp.bias_rate=0.01", "mlp.balance=0", "accumulate=2"]


def biases(half: int | None) -> list[list[float]]:
    """Returns the bias after each of a few steps on a half of every batch, or on all of it."""
    built, found = layer(router="switch", bias_rate=0.01), []
    for step in range(STEPS):
        x_BTD = randn(2 * B, T, D, seed=step)
        for part in x_BTD.split(B) if half is None else [x_BTD[half::2]]:
            built(part)
        built.end_step()
        found.append(built.bias_E.tolist())
    return found


def of_rank() -> list[list[float]]:
    rank = int(os.environ["LOCAL_RANK"])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = biases(rank)
    dist.destroy_process_group()
    return found


def test_the_bias_is_that_of_the_whole_batch() -> None:
    """Each half alone would move it otherwise."""
    whole = biases(None)
    assert in_pair(of_rank) == [whole, whole]
    assert whole not in (biases(0), biases(1))
    assert len(set(whole[-1])) > 1


@pytest.mark.slow
def test_two_devices_are_one_big_batch(tmp_path: Path) -> None:
    """All metrics and weights up to rounding, the bias exactly."""
    pair = [*MOE, "accelerator=cpu", "devices=2", "strategy=ddp"]
    one = trained(tmp_path / "one", *MOE)
    in_pair(train_each, [(tmp_path / "two", pair, [])])
    two = RunFolder(tmp_path / "two" / tiny(*pair).run_name())
    assert_alike(two, one)
    weights, others = (torch.load(run.path / "weights.pt", weights_only=True) for run in (two, one))
    names = [name for name in weights if name.endswith("bias_E")]
    assert len(names) == 2
    for name in names:
        torch.testing.assert_close(weights[name], others[name], rtol=0, atol=0)
        assert weights[name].abs().max() > 0.01
