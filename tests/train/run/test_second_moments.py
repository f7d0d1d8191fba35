"""RMS of the gradient over the root of the second moment, held against moments written out here."""

import math

import pytest
import torch

from tests.conftest import randn
from tests.train.helpers import tiny
from train.run.module import ProxyModule

STEPS = 3
FACTORED = "adafactor"
WITH = ["adamw", "ademamix", "adamh", "cautious_adamw", "stable_adamw", FACTORED]
SCALES = (1.0, 0.2, 7.0)
"""Factors on the gradients of the steps. The last one is a spike."""


def rows_of(*overrides: str) -> tuple[ProxyModule, list[dict[str, float]], list[list[torch.Tensor]]]:
    """Takes steps with random gradients; returns the module, its rows, and each step's gradients in fp64."""
    module = ProxyModule(tiny("watch_every=1", "optimizer.clip=null", *overrides))
    optimizer = module.configure_optimizers()
    gradients = []
    for step, scale in enumerate(SCALES):
        for i, p in enumerate(module.tensors):
            p.grad = scale * randn(*p.shape, seed=100 * step + i)
        gradients.append([p.grad.double() for p in module.tensors if p.grad is not None])
        module.clip(step)
        module.update(optimizer, step)
        module._watch_second_moments()
        module.recorder.add({"step": step}, module._stats)
        module._stats = {}
    return module, module.recorder.flush(), gradients


@pytest.mark.parametrize("name", WITH)
def test_reference(name: str) -> None:
    module, rows, gradients = rows_of(f"optimizer={name}")
    for i, tensor in enumerate(module.tensor_names):
        eps = module.epsilons[i]
        g = [of_step[i] for of_step in gradients]
        for step, row in enumerate(rows):
            v = second_moment(module.config.optimizer, g[: step + 1], eps)
            expected = float((g[step].square() / v.clamp_min(eps**2)).mean().sqrt())
            assert row[f"adam/{tensor}/g_over_sqrt_v_rms"] == pytest.approx(expected, rel=1e-5), (tensor, step)


def second_moment(config, g: list[torch.Tensor], eps: float) -> torch.Tensor:
    """Returns u_t of StableAdamW, which is Adam's v_t / (1 - beta2^t), or Adafactor's product of rows and columns."""
    if config.name != FACTORED:
        shares = [config.beta2 ** (len(g) - 1 - s) for s in range(len(g))]
        return sum(share * x.square() for share, x in zip(shares, g, strict=True)) / sum(shares)
    v = torch.zeros_like(g[0])
    for t, x in enumerate(g, 1):
        v = v + t**config.beta2_decay * (x.square() - v)
    if v.ndim == 1:
        return v
    return v.mean(-1, keepdim=True) * v.mean(-2, keepdim=True) / v.mean().clamp_min(eps)


def test_by_hand() -> None:
    """A first gradient gives 1. After one of 1, one of 7 gives 7 / sqrt((0.95 + 49) / 1.95) = 1.383."""
    module = ProxyModule(tiny("watch_every=1", "optimizer.clip=null"))
    optimizer = module.configure_optimizers()
    for step, size in enumerate((1.0, 7.0)):
        for p in module.tensors:
            p.grad = torch.full_like(p, size)
        module.update(optimizer, step)
        module._watch_second_moments()
        expected = 1 if step == 0 else 7 / math.sqrt((0.95 + 49) / 1.95)
        assert float(module._stats["adam/head/g_over_sqrt_v_rms"]) == pytest.approx(expected, rel=1e-6)


def test_elements_below_epsilon() -> None:
    """Where sqrt(v) is below epsilon, epsilon takes its place: zero gradients give 0."""
    module = ProxyModule(tiny("watch_every=1", "optimizer.clip=null", "optimizer.eps=0.5"))
    optimizer = module.configure_optimizers()
    for p in module.tensors:
        p.grad = torch.full_like(p, 0.1)
        p.grad.flatten()[::2] = 0
    module.update(optimizer, 0)
    module._watch_second_moments()
    assert float(module._stats["adam/head/g_over_sqrt_v_rms"]) == pytest.approx(0.2 / math.sqrt(2), rel=1e-6)


def test_muon_s_own_tensors_have_none() -> None:
    _, rows, _ = rows_of("optimizer=muon")
    found = {name for name in rows[-1] if name.endswith("g_over_sqrt_v_rms")}
    assert "adam/head/g_over_sqrt_v_rms" in found
    assert not any("mlp" in name or "attention" in name for name in found if "norm" not in name)


@pytest.mark.parametrize("name", ["lion", "mars", "soap", "adam_cm"])
def test_optimizers_without_a_mean_of_squared_gradients(name: str) -> None:
    _, rows, _ = rows_of(f"optimizer={name}")
    assert not any("g_over_sqrt_v" in name for row in rows for name in row)
