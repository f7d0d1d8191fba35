"""Measures the time and memory of each mixing rule's attention layer, relative to softmax, at several lengths T.

A rule and softmax alternate step by step, forward and backward, on one CPU thread in fp32. Batches have the same number
of tokens at every length. A time ratio is the median over rounds of the summed CPU time. It includes projections,
qk-norm and positions. Memory is the peak that torch allocates during a step, in addition to the layer and its input.
Scratch memory inside libraries is not counted.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from conf.axis import ConfigError, near
from models.attention.mixing.base import ATTENTION
from models.carry import Carry
from models.gpt import GPT, initialize
from train.bench.axes import COMPANIONS, SETTLE
from train.bench.costs import THREADS
from train.cli.axes import names
from train.cli.estimate import LENGTHS
from train.config.compose import compose
from train.config.schema import Config
from train.run.process import environment, process_kept

TOKENS = 1024
"""Tokens per batch: 16 sequences of 64, or one of 1,024."""
DEFAULT = "softmax"


@dataclass(frozen=True)
class RuleCost:
    """Holds the cost of a mixing rule relative to softmax."""

    rule: str
    companions: list[str]
    times: list[float]
    """Time of a step relative to softmax, at each of LENGTHS."""
    memories: list[float]
    """Peak memory of a step relative to softmax, at each of LENGTHS."""
    growth: float
    """Exponent x of time ~ T^x between the last two lengths, at a constant number of tokens per batch."""
    refused: str = ""
    """The error, if the rule can't be combined with the default config. There are no figures then."""


class Layer:
    """Holds the attention layer of a model's first block, an input, and a gradient of its output."""

    def __init__(self, config: Config, length: int) -> None:
        config = replace(config, context=length, batch_size=TOKENS // length)
        model = GPT(config, vocab_size=config.data.vocab_size, context=length)
        initialize(model, config, config.seed)
        self.layer: Any = model.blocks[0].get_submodule("attention")
        shape = (TOKENS // length, length, config.model.width)
        generator = torch.Generator().manual_seed(config.seed)
        self.x_BTD = torch.randn(shape, generator=generator, requires_grad=True)
        self.gradient_BTD = torch.randn(shape, generator=generator)

    def step(self) -> None:
        self.x_BTD.grad = None
        self.layer.zero_grad()
        self.layer(self.x_BTD, Carry()).backward(self.gradient_BTD)

    def seconds(self) -> float:
        """Returns the CPU time of a step."""
        start = time.process_time()
        self.step()
        return time.process_time() - start

    def peak(self) -> int:
        """Returns the peak number of bytes that torch allocates during a step, including its results."""
        self.x_BTD.grad = None
        self.layer.zero_grad()
        # The variable keeps the profiler from writing to stderr whenever it starts and stops.
        with (
            environment(KINETO_LOG_LEVEL="99"),
            profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
        ):
            self.layer(self.x_BTD, Carry()).backward(self.gradient_BTD)
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = most = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            most = max(most, held)
        return most


def rules(only: Sequence[str] = ()) -> list[str]:
    """Returns the rules in `only`, or all registered ones, softmax first. Raises ConfigError for an unknown rule."""
    for rule in only:
        if rule not in ATTENTION.choices:
            raise ConfigError(f"attention={rule} does not exist: {near(rule, list(ATTENTION.choices))}")
    return [rule for rule in names(ATTENTION, DEFAULT) if rule in (only or ATTENTION.choices)]


@process_kept(THREADS)
def measure_attention(
    overrides: Sequence[str],
    steps: int,
    rounds: int,
    only: Sequence[str] = (),
    report: Callable[[RuleCost], None] = lambda cost: None,
) -> tuple[list[float], list[RuleCost]]:
    """Returns the CPU seconds of softmax's step at each length, and the cost of each rule.

    `steps` is the number of steps per round at the first length. Longer batches get proportionally fewer, at least two.
    `report` is called with each cost as soon as it is measured.
    """
    counts = [max(2, steps * LENGTHS[0] // length) for length in LENGTHS]
    default = compose(overrides)
    softmax = [Layer(default, length) for length in LENGTHS]
    memories = [layer.peak() for layer in softmax]
    seconds: list[list[float]] = [[] for _ in LENGTHS]

    def cost(rule: str) -> RuleCost:
        companions = COMPANIONS.get(f"attention={rule}", [])
        chosen = [*overrides, f"attention={rule}", *companions]
        times, peaks = [], []
        try:
            layers = [Layer(config, length) for config in [compose(chosen)] for length in LENGTHS]
        except ConfigError as fault:
            return RuleCost(rule, companions, [], [], math.nan, str(fault))
        for i, layer in enumerate(layers):
            peaks.append(layer.peak() / memories[i])
            for _ in range(SETTLE):
                softmax[i].step()
                layer.step()
            ratios = []
            for _ in range(rounds):
                pairs = [(softmax[i].seconds(), layer.seconds()) for _ in range(counts[i])]
                seconds[i].append(sum(s for s, _ in pairs) / counts[i])
                ratios.append(sum(c for _, c in pairs) / sum(s for s, _ in pairs))
            times.append(statistics.median(ratios))
        taken = [ratio * statistics.median(s) for ratio, s in zip(times, seconds, strict=True)]
        return RuleCost(rule, companions, times, peaks, growth(taken))

    costs = []
    for rule in rules(only):
        costs.append(cost(rule))
        report(costs[-1])
    return [statistics.median(s) for s in seconds if s], costs


def growth(taken: Sequence[float]) -> float:
    """Returns the slope of log(time) over log(T) between the last two lengths; 0 means a constant cost per token."""
    [(t0, y0), (t1, y1)] = list(zip(LENGTHS, taken, strict=True))[-2:]
    return math.log(y1 / y0) / math.log(t1 / t0)
