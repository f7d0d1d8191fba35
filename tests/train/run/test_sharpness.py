"""The critical sharpness of quadratics with known Hessians, and in runs."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from conf.axis import ConfigError
from data.batches import train_batch
from data.prepare import prepare
from tests.train.helpers import tiny, trained
from train.run.module import ProxyModule
from train.run.sharpness import adam_edge, critical_lr

HESSIAN = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
THETA = torch.tensor([1.0, -2.0], dtype=torch.float64)
GRADIENT = HESSIAN @ THETA  # (1, -3): u.H u / g.u is 15 / 10 for u = g


class Loss:
    """theta.H theta / 2 after a step along -u, counting how often it is computed."""

    def __init__(self, u: torch.Tensor) -> None:
        self.u, self.calls = u, 0

    def __call__(self, lr: float) -> float:
        self.calls += 1
        theta = THETA - lr * self.u
        return float(theta @ HESSIAN @ theta / 2)


@pytest.mark.parametrize(("u", "sharpness"), [((1.0, -3.0), 1.5), ((1.0, -1.0), 0.75), ((0.1, -0.3), 0.15)])
def test_of_a_quadratic(u: tuple[float, float], sharpness: float) -> None:
    """The second is a sign step: u.H u = 3 and g.u = 4."""
    found = [
        critical_lr(Loss(torch.tensor(u, dtype=torch.float64)), Loss(GRADIENT)(0), guess) for guess in (1e-3, 2, 50)
    ]
    assert found == pytest.approx([2 / sharpness] * 3, rel=1 / 32)


@pytest.mark.parametrize(
    ("loss", "answer", "most"),
    [
        (lambda lr: -lr + lr**2 + 2 * lr**3, 0.5, 5),
        (lambda lr: -lr + lr**4, 1.0, 7),
        (lambda lr: -lr + math.exp(min(40 * (lr - 1), 600.0)), 1.0, 9),
        (lambda lr: -lr if lr < 0.7 else 1.0, 0.7, 8),
        (lambda lr: -lr * math.exp(-lr) + lr**2 / (1 + lr), 0.8064659942359951, 5),
    ],
    ids=["cubic", "quartic", "wall", "step", "saturating"],
)
def test_of_other_losses(loss: Callable[[float], float], answer: float, most: int) -> None:
    """The last answer solves exp(-x) (1 + x) = x."""
    for guess in (0.5 * answer, answer, 2 * answer):
        calls: list[float] = []
        found = critical_lr(lambda lr, calls=calls: (calls.append(lr), loss(lr))[1], loss(0.0), guess)  # type: ignore[misc]
        assert found == pytest.approx(answer, rel=1 / 32)
        assert len(calls) <= most + 1


def test_four_forward_passes_from_a_guess_within_a_factor_of_two() -> None:
    loss = Loss(GRADIENT)
    before = loss(0)
    for guess in (1.01, 1.4, 1.99):
        loss.calls = 0
        critical_lr(loss, before, guess)
        assert loss.calls <= 4


def test_nan_is_a_rise_and_a_loss_that_never_rises_has_no_answer() -> None:
    assert critical_lr(lambda lr: 0.5 if lr < 0.3 else math.nan, 1.0, 1.0) == pytest.approx(0.3, rel=1 / 32)
    assert critical_lr(lambda lr: -lr, 0.0, 1.0) is None
    assert critical_lr(lambda lr: lr, 0.0, 1.0) is None


@pytest.mark.parametrize("slope", [0.5, 0.05, 0.005])
def test_a_step_that_always_raises_the_loss_has_no_answer_in_fp32_either(slope: float) -> None:
    """Small steps change the loss of 3 by less than it is rounded, or seem to lower it by that much."""
    assert critical_lr(lambda lr: float(np.float32(3 + slope * lr + lr**2)), 3.0, 0.01) is None
    assert critical_lr(lambda lr: float(np.float32(3 + slope * lr + lr**2 - 5e-7)), 3.0, 0.01) is None


def test_adams_edge() -> None:
    assert adam_edge(1.0, 0.9) == pytest.approx(38)
    assert adam_edge(0.01, 0.0) == pytest.approx(200)


def test_runs_record_it_and_train_as_without(tmp_path) -> None:
    plain, watched = trained(tmp_path / "plain"), trained(tmp_path / "watched", "watch.sharpness=true")
    rows = [row for row in watched.metrics() if "sharpness/critical" in row]
    assert [row["step"] for row in rows] == [0, 4, 8, 11]
    for row in rows:
        edge = row["sharpness/critical"] * row["train/lr"] / 38
        assert row["sharpness/over_edge"] == pytest.approx(edge, rel=1e-5)
    without = [{k: v for k, v in row.items() if not k.startswith("sharpness/")} for row in watched.metrics()]
    assert without == plain.metrics()


def test_several_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"watch\.sharpness=true compares losses on one device"):
        tiny("watch.sharpness=true", "devices=2")


def test_of_a_run_it_is_where_the_first_step_scaled_as_a_whole_raises_the_loss(tmp_path) -> None:
    words = ["watch.sharpness=true", "steps=1", "qk_norm=none"]
    run, config = trained(tmp_path, *words), tiny(*words)
    row = run.metrics()[1]
    module = ProxyModule(config)
    before = {name: p.detach().clone() for name, p in module.model.state_dict().items()}
    after = torch.load(run.path / "weights.pt", weights_only=True)
    tokens = prepare(config.data, Path(config.cache).expanduser()).train
    batch = train_batch(tokens, seed=config.seed, step=0, batch_size=config.batch_size, context=config.context)

    def loss(rate: float) -> float:
        share = rate / row["train/lr"]
        module.model.load_state_dict({name: p + share * (after[name] - p) for name, p in before.items()})
        with torch.no_grad():
            return float(module.loss_of(batch, False)[0])

    critical = 2 / row["sharpness/critical"]
    assert loss(0.9 * critical) < loss(0.0) < loss(1.1 * critical)
