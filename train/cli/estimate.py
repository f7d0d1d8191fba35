"""Estimates what runs will cost before they are trained: time on CPU cores, memory, tokens and FLOPs.

The time of a step is a constant, one per block, and the model FLOPs at the rate of the matrix products, times the
measured ratios of the choices (train/bench/axes.json, attention.json). The constants are those of a quiet core with
AVX512 and torch 2.13, for widths 32 to 128 in steps of 8 x 64 tokens. Where several runs train at once, they take
BESIDE times as long. GPUs have not been measured: their time is a bound by the FLOPs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from conf.axis import axes
from models.architecture import Architecture
from train.cli.format import size_label
from train.cli.tables import plain_table, print_table
from train.cli.terminal import say, table_console
from train.config.schema import Config
from train.run.derived import flops_per_token, tokens_per_step
from train.sweeps.plan import Sweep

STEP_SECONDS, BLOCK_SECONDS, FLOPS_PER_SECOND = 0.8e-3, 1.4e-3, 110e9
"""Per step, per step and block, and rate of a CPU core. train/bench/README.md has the steps that they are fitted to."""

BF16 = 1.45, 0.4
"""With `precision=bf16`, on a core with AVX512-BF16, the factors of the constant part and of that of the FLOPs."""

PARAMETER_BYTES = 16
"""Weight, gradient and AdamW's two moments."""

PER_BLOCK = 22
"""Floats that a block keeps for the backward pass, per token and unit of width."""

PROCESS_BYTES = 0.45e9
"""Memory of a process with the libraries loaded."""

BESIDE = 1.6
"""Time of a run beside others, with which it shares memory and caches, over that of a run alone: 1.1 to 1.8 with two
runs on two cores, depending on the day."""

LAYER_SHARE = 0.44
"""Share of a step that attention layers take with softmax in contexts of 64: whole steps took 1.8 times as long with
entmax, whose layer takes 2.8 times, and 1.44 with softpick, whose layer takes 2.0."""

MEASURED = Path(__file__).parents[1] / "bench"
"""Folder of axes.json, the times of steps, and attention.json, those of attention layers."""

H100_FLOPS = {"bf16": 989e12, "fp32": 67e12}
"""Dense peak FLOPs per second of an H100 (SXM) by precision."""

BEST_MFU = 0.4
"""Share of the peak that a GPU is assumed to reach at best; small models reach far less."""

LENGTHS = (64, 256, 1024)
"""Contexts at which attention layers are measured."""


@dataclass(frozen=True)
class Cost:
    n: int
    parameters: int
    tokens: int
    flops: float
    seconds: float
    """On one CPU core; on GPUs, the least for one H100."""
    bytes: float
    """Peak memory of one process."""
    gpu: bool = False

    def time(self) -> str:
        return f"{'at least ' * self.gpu}{minutes(self.seconds)}"


class Estimator:
    """Estimates the costs of many configs, building each architecture only once, without memory for its weights.

    `at_once` is the number of runs that train at the same time.
    """

    def __init__(self, at_once: int = 1) -> None:
        self.slowdown = BESIDE if at_once > 1 else 1.0
        self.ratios = {(row["axis"], row["value"]): row["ratio"] for row in _rows("axes") if row["ratio"]}
        self.layers = {
            row["rule"]: row["times"] for row in _rows("attention") if row["times"] and row["rule"] != "softmax"
        }
        self.counted: dict[str, tuple[int, int, int]] = {}

    def cost(self, config: Config) -> Cost:
        n, active, parameters = self._counts(config)
        model, tokens = config.model, tokens_per_step(config)
        flops = flops_per_token(config, active) * tokens
        around, products = BF16 if config.precision == "bf16" else (1.0, 1.0)
        seconds = around * (STEP_SECONDS + BLOCK_SECONDS * model.depth) + products * flops / FLOPS_PER_SECOND
        seconds *= self._ratio(config) * self._attention(config) * self.slowdown
        shared = tokens // (config.accumulate * (config.devices or 1) * config.nodes)
        per_token = model.depth * (PER_BLOCK * model.width + model.heads * config.context) + 3 * config.data.vocab_size
        memory = PROCESS_BYTES + PARAMETER_BYTES * parameters + 4 * shared * per_token
        steps = config.steps
        if gpu := on_gpus(config):
            seconds = flops / (BEST_MFU * H100_FLOPS[config.precision])
        return Cost(n, parameters, steps * tokens, steps * flops, steps * seconds, memory, gpu)

    def _ratio(self, config: Config) -> float:
        """Returns the product of the measured ratios of the choices, 1 for those that were not measured."""
        product = 1.0
        for axis in axes(Config).keys() - {"attention"}:
            product *= self.ratios.get((axis, getattr(config, axis).name), 1.0)
        return product

    def _attention(self, config: Config) -> float:
        """Returns the time of a step over that with softmax, by the layers' ratios; 1 where none was measured."""
        depth, at = config.model.depth, math.log(config.context)
        rules = [config.attention.of_block(block, depth).name for block in range(depth)]
        lengths = [math.log(length) for length in LENGTHS]
        times = [float(np.interp(at, lengths, self.layers[rule])) if rule in self.layers else 1.0 for rule in rules]
        return 1 + LAYER_SHARE * (sum(times) / depth - 1) if times else 1.0

    def _counts(self, config: Config) -> tuple[int, int, int]:
        values = config.values()
        shape: dict[str, Any] = {field.name: values[field.name] for field in fields(Architecture)}
        key = json.dumps([shape, config.data.vocab_size, config.context], sort_keys=True)
        if key not in self.counted:
            import torch

            from models.gpt import GPT

            with torch.device("meta"):
                model = GPT(config, vocab_size=config.data.vocab_size, context=config.context)
            parameters = sum(p.numel() for p in model.parameters())
            self.counted[key] = model.parameter_count(), model.active_parameter_count(), parameters
        return self.counted[key]


def _rows(name: str) -> list[dict[str, Any]]:
    """Returns the measurements in a file of train.bench."""
    of_models = [v for v in json.loads((MEASURED / f"{name}.json").read_text("utf-8")).values() if isinstance(v, dict)]
    return of_models[0]["axes" if name == "axes" else "rules"]


def on_gpus(config: Config) -> bool:
    """Returns whether runs would train on GPUs, those of Slurm's nodes included."""
    import torch

    return config.accelerator == "cuda" or (config.accelerator == "auto" and torch.cuda.is_available())


def device_words(gpu: bool) -> str:
    return f"on H100s, at {BEST_MFU:.0%} MFU, which is assumed and not measured" if gpu else "on one CPU core"


def minutes(seconds: float) -> str:
    """Formats a rough duration: 40 s, 3 min, 2.5 h, 12 days."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length or (unit == "min" and seconds >= length):
            return f"{seconds / length:.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{max(1, round(seconds))} s"


def gigabytes(count: float) -> str:
    """Formats bytes with two digits that count: 0.46 GB, 210 GB."""
    return f"{float(f'{count / 1e9:.2g}'):g} GB"


def print_run(config: Config, state: str) -> None:
    """Prints what training one run would cost."""
    cost = Estimator().cost(config)
    lines = {
        "run": config.run_name(),
        "state": state,
        "parameters": f"N = {cost.n:,} of {cost.parameters:,}",
        "tokens": f"{cost.tokens:,} in {config.steps:,} steps of {config.batch_size} x {config.context}",
        "compute": f"{cost.flops:.2g} FLOPs",
        "time": f"{'' if cost.gpu else 'about '}{cost.time()} {device_words(cost.gpu)}",
        "memory": f"about {gigabytes(cost.bytes)}",
    }
    console = table_console(markup=False)
    for name, text in lines.items():
        say(console, f"{name:12}", text)


def print_sweep(sweep: Sweep, at_once: int, again: bool) -> None:
    """Prints what training a sweep would cost, with a line for each size and arm."""
    from rich.markup import escape

    estimator, groups = Estimator(at_once), dict[tuple[int, str], list[tuple[Cost, bool]]]()
    ended = {c.run_name() for c in sweep.configs} - {c.run_name() for c in sweep.to_do(again)}
    left: dict[str, Cost] = {}
    for config, arm in zip(sweep.configs, _arms(sweep), strict=True):
        cost, done = estimator.cost(config), config.run_name() in ended
        groups.setdefault((cost.n, arm), []).append((cost, done))
        if not done:
            left[config.run_name()] = cost
    titles = ("N", "arm", "runs", "ended", "parameters", "tokens a run", "time a run", "memory a run")
    table = plain_table(*titles, left=("arm",))
    for (n, arm), members in groups.items():
        table.add_row(*map(escape, _line(n, arm, members)))
    console = table_console()
    print_table(console, table, less=("parameters", "tokens a run"))
    total = sum(cost.seconds for cost in left.values())
    longest = max((cost.seconds for cost in left.values()), default=0.0)
    time = f"about {minutes(max(longest, total / at_once))} on CPU cores, {at_once} at a time"
    if any(cost.gpu for cost in left.values()):
        time = f"at least {total / 3600:.2g} GPU hours {device_words(True)}"
    console.print(
        f"{len(left)} of {len({c.run_name() for c in sweep.configs})} runs to train in {sweep.folder}: "
        f"{sum(c.tokens for c in left.values()):,} tokens, {sum(c.flops for c in left.values()):.2g} FLOPs, "
        f"{time}. Nothing was written.",
        markup=False,
    )


def _arms(sweep: Sweep) -> list[str]:
    """Returns the arm of each point: its name, or the overrides that vary besides size, LR and seed."""
    common = set(sweep.points[0]).intersection(*sweep.points)
    apart = ("model", "optimizer.lr", "seed")
    own = [[o for o in point if o not in common and not o.startswith(apart)] for point in sweep.points]
    return [arm or " ".join(overrides) or "-" for arm, overrides in zip(sweep.arms, own, strict=True)]


def _line(n: int, arm: str, members: Sequence[tuple[Cost, bool]]) -> list[str]:
    costs = [cost for cost, _ in members]
    return [
        size_label(n),
        arm,
        str(len(members)),
        str(sum(done for _, done in members)),
        f"{costs[0].parameters:,}",
        f"{costs[0].tokens:,}" if len({c.tokens for c in costs}) == 1 else "several",
        max(costs, key=lambda c: c.seconds).time(),
        gigabytes(max(c.bytes for c in costs)),
    ]
