"""Measures the training step of each choice of the axes, relative to the default config.

The default and a choice alternate step by step on one CPU thread. A step includes batch, forward, loss, backward,
clipping and update, through the module's own methods. Its CPU time is summed over a round, so that work an optimizer
does every few steps counts, and a ratio is the median over rounds. CPU time depends little on other load.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from conf.axis import ConfigError, axes, near
from data.batches import train_batch
from data.prepare import prepare
from train.bench.costs import THREADS
from train.config.compose import compose
from train.config.schema import Config
from train.run.module import ProxyModule
from train.run.process import process_kept

LIMIT = 1.5
"""Ratio above which a choice is marked as expensive."""

OUTSIDE = ("data", "launcher", "logger")
"""Axes that don't affect a training step."""

OPTIONS = {"layer_scale": ["1e-4"], "embedding_norm": ["true"], "value_residual": ["identity", "learnable"]}
"""Single fields that are measured like axes, with their values."""

COMPANIONS = {"placement=ngpt": ["norm=none", "qk_norm=none"], "optimizer=schedule_free": ["schedule=constant"]}
"""Overrides that a choice needs because it can't be combined with the default config."""

SETTLE = 2
"""Untimed steps before each measurement."""


@dataclass(frozen=True)
class Cost:
    """Holds the cost of a choice relative to the default config."""

    axis: str
    value: str
    companions: list[str]
    ratio: float | None = None
    """Step time relative to the default config. None if the choice is refused."""
    refused: str = ""
    """The error, if the choice can't be combined with the default config and has no COMPANIONS."""


class BareModule(ProxyModule):
    """Counts its own steps, without a trainer and without watch steps."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.done = 0

    @property
    def global_step(self) -> int:
        return self.done % self.config.steps

    def watching(self, step: int) -> bool:
        return False


class Steps:
    """Runs training steps one at a time, with the same calls to the module and in the same order as Lightning."""

    def __init__(self, config: Config) -> None:
        self.config, self.module = config, BareModule(config)
        self.optimizer = self.module.configure_optimizers()
        self.tokens = prepare(config.data, config.token_folder).train

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
        """Returns the CPU time of a step."""
        start = time.process_time()
        self.step()
        taken = time.process_time() - start
        self.module.recorder.flush()
        return taken


def values(only: Sequence[str] = ()) -> dict[str, list[str]]:
    """Returns the axes in `only`, or all, with their registered choices. Raises ConfigError for an unknown axis."""
    known = {a: list(axis.choices) for a, axis in axes(Config).items() if a not in OUTSIDE} | OPTIONS
    for axis in only:
        if axis not in known:
            raise ConfigError(f"axis {axis} is not measured: {near(axis, list(known))}")
    return {axis: known[axis] for axis in only or known}


@process_kept(THREADS)
def measure_axes(
    overrides: Sequence[str],
    steps: int,
    rounds: int,
    only: Sequence[str] = (),
    report: Callable[[Cost], None] = lambda cost: None,
) -> tuple[float, list[Cost]]:
    """Returns the CPU seconds of the default's step and the cost of each choice, starting from `overrides`.

    `report` is called with each cost as soon as it is measured.
    """
    config = compose(overrides)
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
