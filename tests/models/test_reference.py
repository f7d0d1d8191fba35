"""The bench against the default model and its training step as models/reference.py writes them out."""

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

from models import reference
from tests.conftest import FEW_STEPS, composer
from train.run.module import ProxyModule

STEPS = 20
SIZE = {"vocab_size": 64, "width": 32, "depth": 2, "heads": 2}
OVERRIDES = [
    *FEW_STEPS, "data=synthetic", f"data.vocab_size={SIZE['vocab_size']}", "logger=none",
    f"model.width={SIZE['width']}", f"model.depth={SIZE['depth']}", f"model.heads={SIZE['heads']}",
    "context=16", "batch_size=8", "seed=3",
]  # fmt: skip


def batches(count: int) -> list[torch.Tensor]:
    """A language with something to learn: a token decides the next one, but for one in four."""
    generator = torch.Generator().manual_seed(0)
    following, found = torch.randperm(64, generator=generator), []
    for _ in range(count):
        tokens = torch.randint(64, (8, 17), generator=generator)
        for t in range(1, 17):
            kept = torch.rand(8, generator=generator) < 0.75
            tokens[:, t] = torch.where(kept, following[tokens[:, t - 1]], tokens[:, t])
        found.append(tokens)
    return found


def bench(overrides: list[str], steps: int) -> tuple[ProxyModule, Any]:
    module = ProxyModule(composer().config([*OVERRIDES, f"steps={steps}", *overrides]))
    return module, module.configure_optimizers()


def train(module: ProxyModule, optimizer: Any, tokens_BT1: torch.Tensor, step: int) -> float:
    """What the trainer does in a step that isn't watched."""
    optimizer.zero_grad()
    loss = module.step_loss(tokens_BT1, step)
    loss.backward()
    module.clip(step)
    module.update(optimizer, step)
    return loss.item()


def test_initial_weights_are_the_same_draws() -> None:
    module, _ = bench([], STEPS)
    weights = reference.initial_weights(reference.Settings(**SIZE, steps=STEPS), seed=3)
    theirs = dict(module.model.named_parameters())
    assert list(weights) == list(theirs)
    for name, weight in weights.items():
        assert torch.equal(weight, theirs[name]), name


CHANGED = {
    "default": ({}, []),
    "lambda of the run's length": ({"weight_decay": 0.4 / STEPS}, ["optimizer.decay_times_steps=0.4"]),
    "every constant": (
        {"lr": 3e-3, "min_lr": 1e-4, "warmup_fraction": 0.2, "beta1": 0.8, "beta2": 0.99, "adam_eps": 1e-6,
         "weight_decay": 1e-2, "clip": 0.3, "z_loss": 1e-2, "norm_eps": 1e-3, "rope_base": 100.0},
        ["optimizer.lr=3e-3", "schedule.min_lr=1e-4", "schedule.warmup_fraction=0.2", "optimizer.beta1=0.8",
         "optimizer.beta2=0.99", "optimizer.eps=1e-6", "optimizer.weight_decay=1e-2", "optimizer.clip=0.3",
         "loss.z_loss=1e-2", "norm.eps=1e-3", "qk_norm.eps=1e-3", "position.base=100"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGED)
def test_twenty_steps(name: str) -> None:
    """Loss and weights to rounding: fp32 has 6e-8 of a number, and twenty steps of sums over it."""
    changes, overrides = CHANGED[name]
    module, optimizer = bench(overrides, STEPS)
    trainer = reference.Trainer(reference.Settings(**SIZE, steps=STEPS, **changes), seed=3)
    losses = []
    for step, tokens_BT1 in enumerate(batches(STEPS)):
        losses.append(trainer.train(tokens_BT1))
        assert train(module, optimizer, tokens_BT1, step) == pytest.approx(losses[-1], rel=2e-6), step
    assert losses[-1] < 0.9 * losses[0]
    for key, weight in module.model.named_parameters():
        difference = (weight - trainer.weights[key]).norm() / trainer.weights[key].norm()
        assert difference < 2e-6, (key, float(difference))


def test_it_shares_nothing_with_the_bench() -> None:
    tree = ast.parse(Path(reference.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert modules == {"math", "dataclasses", "torch", "torch.nn.functional"}
