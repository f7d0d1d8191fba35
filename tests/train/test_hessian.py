"""The preconditioned sharpness of quadratics with known Hessians, and of runs."""

import math
import shutil

import pytest
import torch

from conf.axis import ConfigError
from tests.train.helpers import call, tiny, trained
from train.measure.hessian import Flat, reliable_sharpness, sharpness, sharpness_of_run
from train.results.trained import training_of
from train.run.module import ProxyModule


def test_of_a_quadratic() -> None:
    """H = [[3, 1], [1, 2]] and P = (1, 4) make [[3, .5], [.5, .5]], whose eigenvalues are (3.5 +- sqrt(7.25)) / 2."""
    hessian = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    theta, scale = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([1.0, 4.0])
    found = sharpness(lambda at: hessian @ at, theta, scale)
    assert found == pytest.approx((3.5 + math.sqrt(7.25)) / 2, rel=1e-6)


def test_of_many_dimensions() -> None:
    hessian = torch.linspace(-5, 10, 200, dtype=torch.float64)
    found = sharpness(lambda at: hessian * at, torch.ones(200, dtype=torch.float64), torch.ones(200))
    assert found == pytest.approx(10, rel=1e-2)


@pytest.mark.parametrize(("slope", "reliable"), [(30.0, True), (3000.0, False)])
def test_a_number_that_depends_on_the_displacement_is_none(slope: float, reliable: bool) -> None:
    """tanh(slope x) is linear within both displacements, 1e-3 and 1e-4, or bends within the first."""
    theta = torch.tensor([1.0, 1e-5], dtype=torch.float64)
    found = reliable_sharpness(lambda at: torch.stack([at[0], torch.tanh(slope * at[1])]), theta, torch.ones(2))
    assert found == (pytest.approx(slope, rel=1e-2) if reliable else None)


def test_of_a_run(tmp_path, capsys, monkeypatch) -> None:
    run = trained(tmp_path, "name=run", "steps=30", "qk_norm=none")
    monkeypatch.setattr("train.measure.hessian.BATCHES", 2)
    found = sharpness_of_run(run.path)
    assert found.edge == pytest.approx(38 / found.largest)
    code, said = call(["train.inspect", "hessian", str(run.path)], capsys, monkeypatch)
    assert code == 0
    assert f"{found.largest:.4g}" in said


def test_second_moments_are_of_clipped_gradients() -> None:
    config = tiny()
    flat = Flat(ProxyModule(config), training_of(config, count=2), step=0)
    gradients = [flat.of_batch(tokens_BT1) for tokens_BT1 in flat.batches]
    clipped = [0.01 / g.norm() * g for g in gradients]
    expected = (clipped[0] ** 2 + clipped[1] ** 2) / 2
    torch.testing.assert_close(flat.second_moment(0.01), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(flat.gradient(flat.weights()), (gradients[0] + gradients[1]) / 2)


@pytest.mark.parametrize(
    "optimizer", ["lion", "cautious_adamw", "orthograd", "ademamix", "stable_adamw", "adamw optimizer.update_clip=1"]
)
def test_only_adam(tmp_path, optimizer: str) -> None:
    run = trained(tmp_path, "name=run", "steps=2", *f"optimizer={optimizer}".split())
    with pytest.raises(ConfigError, match=f"optimizer={optimizer.split()[0]} is not plain Adam, whose edge this is"):
        sharpness_of_run(run.path)


def test_learning_rates_of_groups_count(tmp_path, monkeypatch) -> None:
    """The same weights under LRs that are all twice as large are seen twice as sharp, at half the LR of the edge."""
    monkeypatch.setattr("train.measure.hessian.BATCHES", 2)
    plain = trained(tmp_path, "name=plain", "steps=30", "qk_norm=none")
    factors = [f"optimizer.groups.{kind}=2" for kind in ("embedding", "hidden", "head", "vector")]
    other = trained(tmp_path, "name=other", "steps=1", "qk_norm=none", *factors)
    shutil.copyfile(plain.path / "weights.pt", other.path / "weights.pt")
    one, two = sharpness_of_run(plain.path), sharpness_of_run(other.path)
    assert two.largest == pytest.approx(2 * one.largest, rel=1e-3)
    assert two.edge == pytest.approx(one.edge / 2, rel=1e-3)


def test_the_loss_is_that_of_the_last_step(tmp_path, monkeypatch) -> None:
    """MaxSup's weight rises from 0 to 5 in one run and is 5 from the start in the other."""
    monkeypatch.setattr("train.measure.hessian.BATCHES", 2)
    rising, constant = (
        trained(tmp_path, f"name=from-{start}", "loss=maxsup", f"loss.lambda_start={start}", "loss.lambda_end=5").path
        for start in (0, 5)
    )
    shutil.copyfile(rising / "weights.pt", constant / "weights.pt")
    assert sharpness_of_run(rising) == sharpness_of_run(constant)
