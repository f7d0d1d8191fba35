"""Measures steps of a few models on a GPU: time, tokens per second, MFU and memory.

A measurement is a run with the paper's batches of synthetic tokens, of 8,192 kinds, without watch steps. Its time is
that between two synchronisations of the device, so that kernels still in the queue count. In the same process nanoGPT's
step trains on batches of the same size in the same precision, and the fastest way is measured again with all probes at
every tenth step. Then 16 runs of the first model, in small batches, train one after the other and in one process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from conf.axis import ConfigError
from train.bench.costs import NEVER
from train.bench.nanogpt import Step
from train.config.compose import compose
from train.config.schema import Config
from train.run.derived import tokens_per_step
from train.run.machine import device_of
from train.run.packed import train_pack
from train.run.trainer import train

MODELS = ("2.4M", "9.4M", "85M", "gpt2-124M")
SETTLE = 10
"""Steps before the measured ones: kernels are chosen and compiled, and memory is allocated."""
MICRO_BATCH = 32
"""Sequences: the logits of more take most of the memory of a GPU."""
WAYS = {"fp32": (), "bf16": ("precision=bf16",), "bf16, compiled": ("precision=bf16", "compile=true")}
WATCHED = 10
"""Steps from one watch step to the next where the cost of probes is measured."""


PACKED_RUNS = 16
PACKED_WAYS = {"fp32": (), "bf16": ("precision=bf16",)}


class Window(pl.Callback):
    """Takes the wall time of the steps from SETTLE to the end of a run, and the memory that they take on a GPU."""

    def __init__(self, steps: int) -> None:
        self.steps, self.marks = steps, dict[int, float]()
        self.memory: int | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        # The last step is a watch step and counts as none of these.
        step, kind = trainer.global_step, module.device.type
        if step in (SETTLE, SETTLE + self.steps) and step not in self.marks:
            synchronize(kind)
            self.marks[step] = time.perf_counter()
            if kind == "cuda":
                self.memory = torch.cuda.max_memory_allocated()
                torch.cuda.reset_peak_memory_stats()

    def seconds(self) -> float:
        return (self.marks[SETTLE + self.steps] - self.marks[SETTLE]) / self.steps


def gpu_config(model: str, steps: int, *more: str, watch_every: int = NEVER) -> Config:
    """Returns the config of a measurement: batches as in the paper, in micro-batches."""
    return compose(
        [
            "scale=paper", f"model={model}", "data=synthetic", "data.vocab_size=8192", "logger=none", "progress=false",
            f"accumulate={256 // MICRO_BATCH}", f"steps={SETTLE + steps + 1}", f"watch_every={watch_every}",
            "eval_batches=1", "checkpoint_seconds=1000000", *more,
        ]
    )  # fmt: skip


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_nanogpt(config: Config, steps: int) -> float:
    """Returns the seconds of nanoGPT's step at the shapes and in the precision of a config."""
    device = device_of(config)
    step = Step(config, device)
    shape = (config.batch_size, config.context + 1)
    tokens_BT1 = torch.randint(config.data.vocab_size, shape, device=device)
    for _ in range(SETTLE):
        step.train(tokens_BT1)
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step.train(tokens_BT1)
    synchronize(device)
    return (time.perf_counter() - start) / steps


def measure_gpu(config: Config, steps: int) -> dict[str, Any]:
    """Returns the figures of a run's steps: ms, tokens per second, MFU (if the peak of the device is known), GB."""
    window = Window(steps)
    with tempfile.TemporaryDirectory() as folder:
        summary = train(config, parent=Path(folder), callbacks=[window])
    seconds = window.seconds()
    rate = tokens_per_step(config) / seconds
    mfu = {"MFU": summary["mfu"] * rate / summary["train/tokens_per_second"]} if "mfu" in summary else {}
    return {
        "step, ms": 1e3 * seconds,
        "tokens per second": rate,
        **mfu,
        "memory, GB": (window.memory or summary["peak_memory_bytes"]) / 1e9,
    }


def packed_configs(model: str, runs: int, steps: int, *more: str) -> list[Config]:
    """Returns runs of half as many seeds with two LRs each, so small that launches of kernels take their time."""
    small = ("batch_size=8", "accumulate=1", "context=256", f"steps={steps}", f"watch_every={max(1, steps // 4)}")
    grid = [(f"seed={i // 2}", f"optimizer.lr={(0.003, 0.01)[i % 2]}") for i in range(runs)]
    return [gpu_config(model, steps, *small, *point, *more) for point in grid]


def runs_an_hour(configs: Sequence[Config]) -> dict[str, float]:
    """Returns runs an hour of one process that trains runs singly, and all together; starts and probes count.

    Raises RuntimeError if a run of the pack fails.
    """
    rates = {}
    with tempfile.TemporaryDirectory() as parent:
        train(configs[0], parent=Path(parent, "warm"))  # The first run loads libraries and kernels.
        for name in ("single", "packed"):
            start = time.perf_counter()
            if name == "single":
                for config in configs:
                    train(config, parent=Path(parent, name))
            elif any(faults := train_pack(configs, Path(parent, name))):
                raise RuntimeError(f"packed runs failed: {faults}")
            rates[f"{name}, runs an hour"] = 3600 * len(configs) / (time.perf_counter() - start)
    return rates | {"packed / single": rates["packed, runs an hour"] / rates["single, runs an hour"]}


def bench_gpu(
    models: Sequence[str], steps: int, keep: Callable[[dict[str, dict[str, Any]]], None] = lambda results: None
) -> dict[str, dict[str, Any]]:
    """Measures each model in each of WAYS and prints a line each, after which `keep` gets all figures so far.

    Raises ConfigError without a GPU.
    """
    if device_of(compose([])) != "cuda":
        raise ConfigError("--gpu: torch finds no CUDA device: run it on a machine with one")
    results: dict[str, dict[str, Any]] = {"GPU": {"name": torch.cuda.get_device_name()}}

    def say(model: str, way: str, found: dict[str, Any]) -> None:
        results.setdefault(model, {})[way] = found
        print(f"{model} {way}: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()), flush=True)
        keep(results)

    for model in models:
        for way, more in WAYS.items():
            config = gpu_config(model, steps, *more)
            found = measure_gpu(config, steps)
            found["nanoGPT's step / this"] = 1e3 * measure_nanogpt(config, steps) / found["step, ms"]
            say(model, way, found)
        watched = measure_gpu(gpu_config(model, steps, *more, watch_every=WATCHED), steps)
        found = {"step / step without": watched["step, ms"] / results[model][way]["step, ms"]}
        say(model, f"{way}, probes at every {WATCHED}th step", found)
    for way, more in PACKED_WAYS.items():
        configs = packed_configs(models[0], PACKED_RUNS, 10 * steps, *more)
        say(models[0], f"{PACKED_RUNS} runs, {way}", runs_an_hour(configs))
    return results
