"""What each mixing rule costs: forward and backward of the attention layer and its memory, over softmax's, against T.

A rule and softmax take turns, step by step, over batches of the same number of tokens at every length, on one thread of
the CPU in fp32; a ratio is the median over rounds of CPU time added up. Projections, qk-norm and positions are in it.
Memory is the largest sum of what torch has allocated at a time in one step, above what the layer and its input hold;
scratch memory inside of libraries isn't seen.
"""

from __future__ import annotations

import math
import os
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
from train.cli.axes import names
from train.config.compose import compose
from train.config.schema import Config

LENGTHS = (64, 256, 1024)
TOKENS = 1024
"""Of a batch: 16 sequences of 64, one of 1,024."""
DEFAULT = "softmax"


@dataclass(frozen=True)
class RuleCost:
    rule: str
    companions: list[str]
    times: list[float]
    """Time of a step over softmax's, at each of LENGTHS."""
    memories: list[float]
    """Peak memory of a step over softmax's, at each of LENGTHS."""
    growth: float
    """x where the time of a batch of as many tokens grows as T^x, from the last length but one to the last."""
    refused: str = ""
    """The error of a rule that goes neither with the default config nor has companions; it has no figures."""


class Layer:
    """The attention layer of a model's first block, with an input and a gradient of its output."""

    def __init__(self, config: Config, length: int) -> None:
        config = replace(config, context=length, batch_size=TOKENS // length)
        torch.set_num_threads(config.threads)
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
        """CPU time of a step."""
        start = time.process_time()
        self.step()
        return time.process_time() - start

    def peak(self) -> int:
        """Bytes that torch has allocated in a step when it has most, its results included."""
        self.x_BTD.grad = None
        self.layer.zero_grad()
        # Else the profiler writes a line to stderr whenever it starts and stops.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.layer(self.x_BTD, Carry()).backward(self.gradient_BTD)
        events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = most = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            most = max(most, held)
        return most


def rules(only: Sequence[str] = ()) -> list[str]:
    """Those named in `only`, or all of the registry; softmax first."""
    for rule in only:
        if rule not in ATTENTION.choices:
            raise ConfigError(f"attention={rule} does not exist: {near(rule, list(ATTENTION.choices))}")
    return [rule for rule in names(ATTENTION, DEFAULT) if rule in (only or ATTENTION.choices)]


def measure_attention(
    overrides: Sequence[str],
    steps: int,
    rounds: int,
    only: Sequence[str] = (),
    report: Callable[[RuleCost], None] = lambda cost: None,
) -> tuple[list[float], list[RuleCost]]:
    """CPU seconds of softmax's step at each length, and the cost of every rule; `steps` are those at the first length.

    At T times the length there are T times fewer, but at least two.
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
    """The slope of log(time) over log(T) between the last two lengths: 0 where a token costs the same at any T."""
    [(t0, y0), (t1, y1)] = list(zip(LENGTHS, taken, strict=True))[-2:]
    return math.log(y1 / y0) / math.log(t1 / t0)
