"""Tiny runs with each loss: they train, resume bit for bit, and report plain cross-entropy."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F

from data.batches import validation_batches
from data.prepare import prepare
from tests.train.helpers import tiny, trained
from train.losses import LOSS
from train.run.module import ProxyModule
from train.run.trainer import train
from train.runfolder.folder import RunFolder


class Crash(pl.Callback):
    """Raises an error after the update of a step and what is written at that step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step + 1:
            raise RuntimeError("crash")


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return torch.load(run.path / "weights.pt", weights_only=True)


@pytest.mark.parametrize("name", sorted(LOSS.choices))
def test_two_steps(name: str, tmp_path: Path) -> None:
    run = trained(tmp_path, f"loss={name}", "steps=2", "watch_every=1")
    start, *rows = run.metrics()
    assert run.state() == "finished"
    assert len(rows) == 2
    assert all(math.isfinite(row[key]) for row in rows for key in ("train/loss", "train/objective", "gradient/norm"))
    # All losses start from the same weights and data, and the first loss is measured before any update.
    assert rows[0]["train/loss"] == pytest.approx(start["validation/loss"], rel=0.05)
    assert run.summary()["validation/loss_final"] < 6


def test_the_objective_of_the_default_is_the_loss_and_z_loss(tmp_path: Path) -> None:
    for row in trained(tmp_path, "watch_every=1").metrics()[1:]:
        expected = row["train/loss"] + 1e-4 * row["output/log_z_squared"]
        assert row["train/objective"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["spherical", "eslm", "tempnet"])
def test_validation_is_plain_cross_entropy_of_the_capped_logits(name: str, tmp_path: Path) -> None:
    overrides = [f"loss={name}", "loss.soft_cap=1"]
    run, config = trained(tmp_path, *overrides), tiny(*overrides)
    model = ProxyModule(config).model
    model.load_state_dict(weights(run))
    tokens = prepare(config.data, Path(config.cache).expanduser()).validation
    losses = [
        F.cross_entropy(torch.tanh(model(x_BT1[:, :-1])[0]).flatten(0, 1), x_BT1[:, 1:].flatten()).item()
        for x_BT1 in validation_batches(tokens, batch_size=config.batch_size, context=config.context, count=2)
    ]
    assert run.summary()["validation/loss_final"] == pytest.approx(sum(losses) / 2, rel=1e-5)


@pytest.mark.parametrize("name", ["noisy_softmax", "tempnet", "maxsup"])
def test_a_crashed_run_ends_bit_for_bit_like_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    overrides = [f"loss={name}", "accumulate=2", "checkpoint_seconds=0", "watch_every=2"]
    uninterrupted = trained(tmp_path / "uninterrupted", *overrides)
    for step in (3, 6):
        with pytest.raises(RuntimeError, match="crash"):
            trained(tmp_path / "crashed", *overrides, callbacks=[Crash(step)])
    resumed = trained(tmp_path / "crashed", *overrides)
    assert resumed.status()["attempt"] == 3
    assert resumed.metrics_path.read_bytes() == uninterrupted.metrics_path.read_bytes()
    found, expected = weights(resumed), weights(uninterrupted)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["noisy_softmax", "tempnet"])
def test_noise_differs_from_step_to_step_and_between_micro_batches(name: str) -> None:
    proxy = ProxyModule(tiny(f"loss={name}"))
    tokens = torch.randint(64, (8, 17), generator=torch.Generator().manual_seed(0))
    drawn = [float(proxy.loss_of(tokens, False, step, micro)[0].detach()) for step, micro in ((0, 0), (1, 0), (0, 1))]
    assert len(set(drawn)) == 3


def test_tempnet_is_trained_probed_and_in_checkpoints(tmp_path: Path) -> None:
    config = tiny("loss=tempnet", "checkpoint_seconds=0")
    with pytest.raises(RuntimeError, match="crash"):
        train(config, parent=tmp_path, callbacks=[Crash(9)])
    folder = RunFolder(tmp_path / config.run_name())
    saved, start = torch.load(folder.checkpoint, weights_only=True)["state_dict"], ProxyModule(config)
    names = [n for n, _ in start.objective.named_parameters()]
    assert len(names) == 7
    for name in names:
        assert not torch.equal(saved[f"objective.{name}"], start.objective.get_parameter(name)), name
    row = folder.metrics()[1]
    for what in ("parameter", "gradient", "update"):
        assert f"{what}/loss/temperature.up/rms" in row
    assert 0.5 < row["output/temperature"] < 5
    # weights.pt holds only the model: predictions don't use the network.
    train(config, parent=tmp_path)
    assert weights(folder).keys() == start.model.state_dict().keys()


def test_progress_goes_from_zero_to_one() -> None:
    """MaxSup's lambda is 0.1 at the first step and 0.2 at the last."""
    proxy, plain = ProxyModule(tiny("loss=maxsup", "steps=12")), ProxyModule(tiny("loss=cross_entropy", "steps=12"))
    tokens = torch.randint(64, (8, 17), generator=torch.Generator().manual_seed(0))
    terms = [float((proxy.loss_of(tokens, False, s)[0] - plain.loss_of(tokens, False, s)[0]).detach()) for s in (0, 11)]
    assert terms[1] / terms[0] == pytest.approx(2, rel=1e-4)
