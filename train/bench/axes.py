"""What each choice of the training axes costs: its training step as a ratio to the default config's.

The default and a choice take turns, step by step, and a ratio is the median over rounds of so many steps each. A step
is all of it: batch, forward, loss, backward, clipping and update, through the module's own methods, on one thread of
the CPU. Its CPU time is taken, which others on the machine hardly lengthen, and added up over a round, so that what an
optimizer does every few steps counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from conf.axis import ConfigError, axes, near
from data.batches import train_batch
from data.prepare import prepare
from train.config.compose import compose
from train.config.schema import Config
from train.run.module import ProxyModule

LIMIT = 1.5
"""Ratio above which a choice is marked."""

OUTSIDE = ("data", "launcher", "logger")
"""Axes that are no part of a step."""

OPTIONS = {"layer_scale": ["1e-4"], "embedding_norm": ["true"], "value_residual": ["identity", "learnable"]}
"""Fields that are measured like axes."""

COMPANIONS = {"placement=ngpt": ["norm=none", "qk_norm=none"], "optimizer=schedule_free": ["schedule=constant"]}
"""What a choice is measured with where it doesn't go with the default config: what its error asks for."""

SETTLE = 2
"""Steps before each measurement that are not timed."""


@dataclass(frozen=True)
class Cost:
    axis: str
    value: str
    companions: list[str]
    ratio: float | None = None
    """Step time over that of the default config; None where the choice is refused."""
    refused: str = ""
    """The error of a choice that goes neither with the default config nor has companions here."""


class BareModule(ProxyModule):
    """A proxy that counts its steps without a trainer; none is a watch step."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.done = 0

    @property
    def global_step(self) -> int:
        return self.done % self.config.steps

    def watching(self, step: int) -> bool:
        return False


class Steps:
    """Training steps by hand: what Lightning calls on the module in each, in its order, so that runs take turns."""

    def __init__(self, config: Config) -> None:
        self.config, self.module = config, BareModule(config)
        self.optimizer = self.module.configure_optimizers()
        self.tokens = prepare(config.data, Path(config.cache).expanduser()).train

    def step(self) -> None:
        config, module = self.config, self.module
        tokens_BT1 = train_batch(
            self.tokens, seed=config.seed, step=module.done, batch_size=config.batch_size, context=config.context
        )

        def closure() -> torch.Tensor:
            loss = module.training_step(tokens_BT1, module.done)
            self.optimizer.zero_grad()
            loss.backward()
            module.configure_gradient_clipping(self.optimizer)
            return loss

        module.optimizer_step(0, module.done, self.optimizer, closure)
        module.done += 1

    def seconds(self) -> float:
        """CPU time of a step."""
        start = time.process_time()
        self.step()
        taken = time.process_time() - start
        self.module.recorder.flush()
        return taken


def values(only: Sequence[str] = ()) -> dict[str, list[str]]:
    """The axes to measure and their choices, from the registries; those named in `only`, or all."""
    known = {a: list(axis.choices) for a, axis in axes(Config).items() if a not in OUTSIDE} | OPTIONS
    for axis in only:
        if axis not in known:
            raise ConfigError(f"axis {axis} is not measured: {near(axis, list(known))}")
    return {axis: known[axis] for axis in only or known}


def measure_axes(
    overrides: Sequence[str],
    steps: int,
    rounds: int,
    only: Sequence[str] = (),
    report: Callable[[Cost], None] = lambda cost: None,
) -> tuple[float, list[Cost]]:
    """CPU seconds of the default's step, and the cost of every choice, over a config that `overrides` change."""
    config = compose(overrides)
    torch.set_num_threads(config.threads)
    default = Steps(config)
    blocks: list[float] = []

    def cost(axis: str, value: str) -> Cost:
        companions = COMPANIONS.get(f"{axis}={value}", [])
        try:
            chosen = Steps(compose([*overrides, f"{axis}={value}", *companions]))
        except ConfigError as fault:
            return Cost(axis, value, companions, refused=str(fault))
        for _ in range(SETTLE):
            default.step()
            chosen.step()
        ratios = []
        for _ in range(rounds):
            pairs = [(default.seconds(), chosen.seconds()) for _ in range(steps)]
            blocks.append(sum(d for d, _ in pairs))
            ratios.append(sum(c for _, c in pairs) / blocks[-1])
        return Cost(axis, value, companions, statistics.median(ratios))

    costs = []
    for axis, choices in values(only).items():
        for value in choices:
            costs.append(cost(axis, value))
            report(costs[-1])
    return statistics.median(blocks) / steps, costs
