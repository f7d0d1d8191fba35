"""Relative learning rates, compared with their equation in float64."""

from typing import Any

import pytest
import torch
from torch import nn

from models.parametrization import ParameterGroup, TensorScaling
from tests.conftest import choice, randn
from tests.train.helpers import tiny, trained
from train.optimizers import OPTIMIZER
from train.run.module import ProxyModule
from train.run.relative_lr import RelativeLR

SCALING = TensorScaling(least_rms=1e-3)
FACTORS = [0.5, 1.0, 0.75, 0.25]


def moved(
    start: torch.Tensor,
    gradients: list[torch.Tensor],
    rule: TensorScaling = SCALING,
    name: str = "adamw",
    **changes: Any,
) -> torch.Tensor:
    config = choice(OPTIMIZER, name, **changes)
    parameter = nn.Parameter(start.clone())
    group = ParameterGroup([parameter], "hidden", rule)
    optimizer = config.build([group])
    relative = RelativeLR([parameter], [group], config)
    for gradient, factor in zip(gradients, FACTORS[: len(gradients)], strict=True):
        parameter.grad = gradient.clone()
        for group in optimizer.param_groups:
            group["lr"] = config.lr * factor * group["lr_scale"]
        relative.start()
        optimizer.step()
        relative.finish(factor, optimizer)
    return parameter.detach()


def equation(start: torch.Tensor, gradients: list[torch.Tensor], lr: float, decay: str, rate: float) -> torch.Tensor:
    """theta <- theta - s_t rho eta Delta - s_t (rho eta lambda or lambda) theta, rho = max(RMS(theta), 1e-3)."""
    theta, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, (gradient, s) in enumerate(zip(gradients, FACTORS, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        delta = (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        own = lr * max(float(theta.square().mean().sqrt()), 1e-3)
        theta = theta - s * (own * delta + {"coupled": own * rate, "independent": rate, "none": 0.0}[decay] * theta)
    return theta


@pytest.mark.parametrize("decay", ["independent", "coupled", "none"])
@pytest.mark.parametrize("scale", [3.0, 0.1, 1e-5, 0.0])
def test_is_the_equation(decay: str, scale: float) -> None:
    rate = {"independent": 0.05, "coupled": 2.0, "none": 0.0}[decay]
    start, gradients = scale * randn(7, dtype=torch.float64), [randn(7, seed=i, dtype=torch.float64) for i in range(4)]
    found = moved(start, gradients, lr=0.1, decay=decay, weight_decay=rate)
    # The RMS is taken in fp32.
    torch.testing.assert_close(found, equation(start, gradients, 0.1, decay, rate), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("decay", ["independent", "coupled"])
def test_stable_adamw_divides_its_decay_too(decay: str) -> None:
    """theta <- theta - s_t (rho eta Delta + (rho eta lambda or lambda) theta) / max(1, RMS_t), spikes included."""
    rate = {"independent": 0.05, "coupled": 2.0}[decay]
    start, spikes = 0.1 * randn(7, dtype=torch.float64), (1, 30, 1, 200)
    gradients = [spike * randn(7, seed=i, dtype=torch.float64) for i, spike in enumerate(spikes)]
    found = moved(start, gradients, name="stable_adamw", lr=0.1, decay=decay, weight_decay=rate, beta2=0.95, eps=1e-8)
    theta, m, v, divisors = start.clone(), torch.zeros_like(start), torch.zeros_like(start), []
    for t, (gradient, s) in enumerate(zip(gradients, FACTORS, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        v_hat = v / (1 - 0.95**t)
        divisors.append(max(1.0, float((gradient**2 / v_hat).mean().sqrt())))
        own = 0.1 * max(float(theta.square().mean().sqrt()), 1e-3)
        decayed = (own * rate if decay == "coupled" else rate) * theta
        theta = theta - s / divisors[-1] * (own * m / (1 - 0.9**t) / (v_hat.sqrt() + 1e-8) + decayed)
    assert max(divisors) > 1.3
    torch.testing.assert_close(found, theta, rtol=1e-6, atol=1e-9)


def test_other_tensors_are_left_alone() -> None:
    start, gradients = randn(7), [randn(7, seed=i) for i in range(4)]
    assert torch.equal(
        moved(start, gradients, TensorScaling(), lr=0.1), moved(start, gradients, TensorScaling(), lr=0.1)
    )
    config = choice(OPTIMIZER, "adamw")
    assert RelativeLR([start], [ParameterGroup([])], config).factors() == 1.0
    relative = RelativeLR([start, 4 * torch.ones(3)], [ParameterGroup([]), ParameterGroup([], scaling=SCALING)], config)
    relative.start()
    torch.testing.assert_close(relative.factors(), torch.tensor([1.0, 4.0]))


def test_nothing_moves_at_lr_zero_but_by_independent_decay() -> None:
    start = randn(7, dtype=torch.float64)
    gradients = [torch.zeros_like(start)] * 4
    left = 1.0
    for factor in FACTORS:
        left *= 1 - 0.1 * factor
    found = moved(start, gradients, lr=0.01, decay="independent", weight_decay=0.1)
    torch.testing.assert_close(found, left * start)


def test_the_step_that_soap_leaves_out_moves_nothing() -> None:
    start = randn(4, 6, dtype=torch.float64)
    gradients = [randn(4, 6, seed=seed, dtype=torch.float64) for seed in (1, 2)]
    decay: dict[str, Any] = {"decay": "independent", "weight_decay": 0.1, "lr": 0.01}
    assert torch.equal(moved(start, gradients[:1], name="soap", **decay), start)
    assert not torch.equal(moved(start, gradients, name="soap", **decay), start)


def test_a_run_divides_its_updates_by_the_tensor_s_own_lr(tmp_path) -> None:
    """Adam's first step equals the LR in every coordinate, so update / LR is one for any RMS of the weights."""
    given = ["parametrization=parameter_rms", "optimizer.decay=none", "steps=2", "watch_every=1", "optimizer.lr=0.1"]
    row = trained(tmp_path, *given).metrics()[1]
    for name in ("head", "block0/mlp.up", "block1/attention.key", "final_norm"):
        assert row[f"update/{name}/rms"] == pytest.approx(1, abs=0.05), name


def test_the_loop_uses_it() -> None:
    proxy = ProxyModule(tiny("parametrization=parameter_rms", "optimizer.decay=none", "optimizer.lr=0.1"))
    optimizer: Any = proxy.configure_optimizers()
    before = {n: p.detach().clone() for n, p in proxy.model.named_parameters()}
    proxy.step_loss(torch.arange(17).repeat(8, 1), 0).backward()
    proxy.clip(0)
    lr = proxy.update(optimizer, 0)
    for name in ("head.weight", "blocks.0.mlp.down.weight", "final_norm.weight"):
        step = (proxy.model.get_parameter(name).detach() - before[name]).abs().median()
        own = lr * float(before[name].square().mean().sqrt())
        assert float(step) == pytest.approx(own, rel=0.05), name
