"""Measures what a small training step costs beyond its arithmetic, and how long a run of a sweep takes to start.

At width 32 a step takes a few milliseconds, so Python and the dispatch of small operations decide its price. Three
versions of the step take turns in one process: the whole run's, under Lightning; the same module's without Lightning;
and that of models/reference.py. Each ratio compares CPU times of the same stretch of steps.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from data.batches import train_batch
from data.prepare import prepare
from models import reference
from train.config.compose import compose
from train.config.schema import Config
from train.run.module import ProxyModule
from train.run.trainer import train
from train.runfolder.folder import RunFolder
from train.sweeps.pool import Pool

WATCH = 50
"""Steps of a stretch, one of which takes all probes."""
STARTS = 5
"""Runs of one slot."""
WIDTHS = (32, 64)
SMALL_TARGETS = {"run / bare": 1.10, "bare / reference": 1.15, "start of a run, s": 0.3}
"""Upper bounds to keep at width 32 on an idle core."""


def small_config(width: int, *more: str) -> Config:
    """Returns the config of a short run on bytes: context 64, batch 8, two blocks of `width`, one thread."""
    return compose(
        [
            "model=mini-w64-d2", f"model.width={width}", f"model.heads={max(1, width // 16)}", "data=synthetic",
            "data.vocab_size=257", "context=64", "batch_size=8", "threads=1", f"watch_every={WATCH}", "eval_batches=4",
            "logger=none", "progress=false", *more,
        ]
    )  # fmt: skip


def reference_settings(config: Config) -> reference.Settings:
    """Returns the settings with which models/reference.py trains the shapes of a config."""
    model = config.model
    return reference.Settings(
        vocab_size=config.data.vocab_size, width=model.width, depth=model.depth, heads=model.heads,
        steps=config.steps, lr=config.optimizer.lr,
    )  # fmt: skip


class Bare:
    """The module of a run, trained by the least that trains it: forward, loss, backward, clip, optimizer step."""

    def __init__(self, config: Config) -> None:
        self.module = ProxyModule(config)
        self.optimizer = self.module.configure_optimizers()

    def train(self, tokens_BT1: torch.Tensor, step: int) -> None:
        self.module.optimizer_zero_grad()
        self.module.step_loss(tokens_BT1, step).backward()
        self.module.clip(step)
        self.module.update(self.optimizer, step)


class Turns(pl.Callback):
    """Takes a step of the bare module and one of the reference after each step of a run, and keeps the CPU times."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.tokens = prepare(config.data, config.token_folder).train
        self.bare = Bare(config)
        self.reference = reference.Trainer(reference_settings(config), config.seed)
        self.times: dict[str, list[float]] = {"run": [], "bare": [], "reference": []}
        self._mark = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._keep("run")
        shape = {"batch_size": self.config.batch_size, "context": self.config.context}
        tokens_BT1 = train_batch(self.tokens, seed=self.config.seed, step=batch_idx, **shape)
        step = min(batch_idx, self.config.steps - 2) | 1  # odd: never a watch step
        others = {
            "bare": lambda: self.bare.train(tokens_BT1, step),
            "reference": lambda: self.reference.train(tokens_BT1),
        }
        self._mark = time.process_time()
        # In alternating order, because a step that follows one of the same code finds it in the caches.
        for name in sorted(others, reverse=batch_idx % 2 == 0):
            others[name]()
            self._keep(name)

    def _keep(self, name: str) -> None:
        now = time.process_time()
        self.times[name].append(now - self._mark)
        self._mark = now

    def stretches(self, name: str) -> list[float]:
        """Returns the seconds per step of each stretch of WATCH steps; the first is left out."""
        taken = self.times[name]
        return [statistics.fmean(taken[start : start + WATCH]) for start in range(WATCH, len(taken) - 1, WATCH)]


def step_ratios(width: int, steps: int) -> dict[str, float]:
    """Returns the CPU times of the three steps, in seconds, and their ratios, each a median over stretches."""
    config = small_config(width, f"steps={steps}")
    torch.set_num_threads(config.threads)
    turns = Turns(config)
    with tempfile.TemporaryDirectory() as folder:
        train(config, parent=Path(folder), callbacks=[turns])
    seconds = {name: turns.stretches(name) for name in turns.times}

    def ratio(over: str, under: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True))

    steps_of = {f"{name} step, s": statistics.median(found) for name, found in seconds.items()}
    return steps_of | {"run / bare": ratio("run", "bare"), "bare / reference": ratio("bare", "reference")}


def start_seconds(width: int) -> float:
    """Returns the median wall time between a run's end and the row of step 0 of the next, in one slot of a sweep."""
    with tempfile.TemporaryDirectory() as folder:
        configs = [small_config(width, "steps=2", f"seed={seed}") for seed in range(STARTS)]
        runs = [RunFolder(Path(folder) / config.run_name()) for config in configs]
        pool = Pool(Path(folder), [None], configs)
        first: dict[Path, float] = {}
        while pool.waiting or pool.running:
            pool.step()
            for path in (run.metrics_path for run in runs):
                if path not in first and path.exists() and '"step": 0,' in path.read_text(encoding="utf-8"):
                    first[path] = time.time()
            pool.wait(0.005)
        ends = [run.status()["time"] for run in runs]
        # The first run of all waits for the server's imports.
        return statistics.median(first[run.metrics_path] - end for run, end in zip(runs[2:], ends[1:-1], strict=True))


def measure_small(width: int, steps: int) -> dict[str, float]:
    """Returns the figures of a width, by the names that SMALL_TARGETS uses."""
    return step_ratios(width, steps) | {"start of a run, s": start_seconds(width)}
