"""Measures what the training loop, the probes and bf16 cost.

Each figure is the median over rounds of a ratio of median step times. The two sides of a ratio are measured in turn, so
that drifts of the machine's speed cancel.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn

from data.batches import train_batch
from data.prepare import prepare
from models.gpt import GPT, initialize
from train.config.compose import compose
from train.config.schema import Config
from train.run.process import process_kept
from train.run.trainer import train

NEVER = 10**9
SETTLE = 4
"""Steps ignored at the start of each measurement."""
THREADS = 1
"""CPU threads of every measurement."""


class StepTimes(pl.Callback):
    """Records the wall time of each optimizer step of a run."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.marks.append(time.perf_counter())

    def of(self, watched: bool, every: int) -> float:
        """Returns the median time in seconds of watch steps, or of the other steps."""
        # The last step is always a watch step, so it belongs to neither group.
        steps = range(SETTLE, len(self.marks) - 1)
        taken = [self.marks[s] - self.marks[s - 1] for s in steps if (s % every == 0) == watched]
        return statistics.median(taken)


def watch_cost(config: Config) -> float:
    """Returns the time of a watch step over that of another step, both from the same run."""
    times = real_steps(config)
    return times.of(True, config.watch_every) / times.of(False, config.watch_every)


def overrides(model: str, *more: str) -> list[str]:
    """Returns the overrides of a benchmark run: synthetic data and no logger."""
    return [f"model={model}", "data=synthetic", "data.vocab_size=257", "logger=none", "progress=false", *more]


def real_steps(config: Config) -> StepTimes:
    """Returns the step times of a complete run, including the Lightning loop and the run folder."""
    with tempfile.TemporaryDirectory() as folder:
        times = StepTimes()
        train(config, parent=Path(folder), callbacks=[times])
        return times


@process_kept(THREADS)
def bare_step(config: Config) -> float:
    """Returns the seconds per step of a plain PyTorch loop over the same model, in the style of nanoGPT."""
    model = GPT(config, vocab_size=config.data.vocab_size, context=config.context)
    initialize(model, config, config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optimizer.lr, betas=(0.9, 0.95), weight_decay=0.01)
    tokens = prepare(config.data, config.token_folder).train
    marks = []
    for step in range(config.steps):
        lr = config.optimizer.lr * config.schedule.factor(step, steps=config.steps, peak=config.optimizer.lr)
        for group in optimizer.param_groups:
            group["lr"] = lr
        x_BT1 = train_batch(tokens, seed=config.seed, step=step, batch_size=config.batch_size, context=config.context)
        logits_BTV, _ = model(x_BT1[:, :-1])
        logits_NV = logits_BTV.flatten(0, 1)
        loss = F.cross_entropy(logits_NV, x_BT1[:, 1:].flatten()) + 1e-4 * logits_NV.logsumexp(-1).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        marks.append(time.perf_counter())
    return statistics.median(b - a for a, b in zip(marks[SETTLE:], marks[SETTLE + 1 :], strict=False))


@process_kept(THREADS)
def gemm_floor(config: Config) -> float:
    """Returns the seconds per step of the matrix products of all linear layers, forward and backward, in fp32."""
    model = GPT(config, vocab_size=config.data.vocab_size, context=config.context)
    tokens = config.batch_size * config.context
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Linear)]
    operands = [(torch.randn(tokens, i), torch.randn(o, i), torch.randn(tokens, o)) for o, i in shapes]

    def products() -> None:
        for x_NI, w_OI, g_NO in operands:
            F.linear(x_NI, w_OI)
            g_NO @ w_OI
            g_NO.T @ x_NI

    marks = []
    for _ in range(config.steps):
        start = time.perf_counter()
        products()
        marks.append(time.perf_counter() - start)
    return statistics.median(marks[SETTLE:])


def first_step_seconds(model: str) -> float:
    """Returns the seconds from the start of the command to the row of step 0, with prepared data."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "train", *overrides(model, "steps=2", f"out={folder}"), "logger=wandb"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if any('"step": 0,' in p.read_text(encoding="utf-8") for p in Path(folder).glob("*/metrics.jsonl")):
                break
            time.sleep(0.02)
        took = time.perf_counter() - start
        if process.wait():
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return took


def rounds(variants: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Calls the variants in turn, `count` times, and returns the results of each."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(count):
        for name, variant in variants.items():
            times[name].append(variant())
    return times


def ratio(times: dict[str, list[float]], over: str, under: str) -> float:
    """Returns the median over rounds of the ratio of two variants."""
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def measure(model: str, steps: int, count: int) -> dict[str, Any]:
    """Returns all figures of a model but the start time, by the names that TARGETS uses."""

    def config(*more: str) -> Config:
        return compose(overrides(model, f"steps={steps}", "eval_batches=1", *more))

    quiet = config(f"watch_every={NEVER}")
    variants: dict[str, Callable[[], float]] = {
        "lightning": lambda: real_steps(quiet).of(False, NEVER),
        "bare": lambda: bare_step(quiet),
        "gemm": lambda: gemm_floor(quiet),
        "bf16": lambda: real_steps(config(f"watch_every={NEVER}", "precision=bf16")).of(False, NEVER),
        "watch": lambda: watch_cost(config("watch_every=5")),
        "sharpness": lambda: watch_cost(config("watch_every=5", "watch.sharpness=true")),
    }
    times = rounds(variants, count)
    seconds, watched = statistics.median(times["lightning"]), statistics.median(times["watch"])
    return {
        "step_seconds": seconds,
        "tokens_per_second": quiet.batch_size * quiet.context / seconds,
        "lightning / bare loop": ratio(times, "lightning", "bare"),
        "lightning / GEMM floor": ratio(times, "lightning", "gemm"),
        "bf16 / fp32": ratio(times, "bf16", "lightning"),
        "watch every step / never": watched,
        "watch every step, with sharpness / never": statistics.median(times["sharpness"]),
        "watch every 10 steps / never": 1 + (watched - 1) / 10,
        "watch every 100 steps / never": 1 + (watched - 1) / 100,
        "times": times,
    }


TARGETS = {
    "lightning / bare loop": 1.05,
    "watch every step / never": 1.25,
    "watch every 10 steps / never": 1.03,
    "bf16 / fp32": 0.75,
    "start to first step, s": 6.0,
}
"""Upper bounds to keep for mini-w128-d2 on one CPU core (with AVX512-BF16 for bf16)."""
