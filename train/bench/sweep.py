"""Measures where the time of a sweep of small runs goes, and its runs an hour against a loop that only trains.

The loop is models/reference.py in plain torch, without validation, probes, files or a schedule of processes, in as many
processes as the sweep has. It takes the same steps on the same batches.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from data import batches
from data.prepare import prepare
from models import reference
from train.bench.small import reference_settings, small_config
from train.config.schema import Config
from train.run.loop import EpochLoop
from train.run.module import ProxyModule
from train.run.trainer import train
from train.runfolder.folder import RunFolder
from train.sweeps.pool import Pool, cores

EVAL_BATCHES = 128
"""As in the default config."""


class Stopwatch:
    """Attributes CPU time to the innermost of the parts that are running; in a watch step to it, but for validation."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.parts = [AROUND]
        self.watching, self.watched = False, 0
        self._mark = time.process_time()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.take()
        self.parts.append(WATCHED if self.watching and name != VALIDATION else name)
        try:
            yield
        finally:
            self.take()
            self.parts.pop()

    def take(self) -> None:
        """Adds the time since the last call to the part that is running."""
        now = time.process_time()
        self.seconds[self.parts[-1]] += now - self._mark
        self._mark = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*arguments: Any, **more: Any) -> Any:
            with self.part(name):
                return function(*arguments, **more)

        return inner

    def step(self, advance: Callable[..., None]) -> Callable[..., None]:
        """Returns a loop's `advance`, timed, whose watch steps are a part of their own."""

        def inner(loop: EpochLoop, *more: Any) -> None:
            module = loop.trainer.lightning_module
            assert isinstance(module, ProxyModule)
            self.watching = module.watching(loop.trainer.global_step)
            self.watched += self.watching
            try:
                with self.part("loop"):
                    advance(loop, *more)
            finally:
                self.watching = False

        return inner


AROUND, WATCHED, VALIDATION = "start and end", "watch steps", "validation"
PARTS: Sequence[tuple[Any, str, str]] = (
    (batches, "train_batch", "data"),
    (ProxyModule, "step_loss", "forward"),
    (torch.Tensor, "backward", "backward"),
    (ProxyModule, "clip", "optimizer"),
    (ProxyModule, "update", "optimizer"),
    (ProxyModule, "validate", VALIDATION),
)
"""Functions that are timed, with their parts. What is left of a step is the loop, with hooks and counters."""


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Replaces an attribute by what `make` returns for it."""
    own = getattr(owner, name)
    setattr(owner, name, make(own))
    try:
        yield
    finally:
        setattr(owner, name, own)


def shares(width: int, steps: int) -> dict[str, float]:
    """Returns the share of each part in the CPU time of a run, from the call of `train` to its return.

    `probes and rows` is what watch steps take beyond as many ordinary steps.
    """
    config = small_config(width, f"steps={steps}", f"eval_batches={EVAL_BATCHES}")
    torch.set_num_threads(config.threads)
    prepare(config.data, config.token_folder)
    clock = Stopwatch()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(replaced(EpochLoop, "advance", clock.step))
        for owner, name, part in PARTS:
            stack.enter_context(replaced(owner, name, partial(clock.timed, part)))
        train(config, parent=Path(folder))
        clock.take()
    return _shares(clock.seconds, clock.watched, steps)


def _shares(seconds: Mapping[str, float], watch_steps: int, steps: int) -> dict[str, float]:
    """Returns shares, with watch steps split into ordinary ones and what they take beyond these."""
    every = steps / (steps - watch_steps)
    of_steps = {name: every * s for name, s in seconds.items() if name not in (AROUND, WATCHED, VALIDATION)}
    ordinary = sum(of_steps.values()) * watch_steps / steps
    found = of_steps | {"probes and rows": seconds[WATCHED] - ordinary}
    found |= {VALIDATION: seconds.get(VALIDATION, 0.0), AROUND: seconds[AROUND]}
    total = sum(found.values())
    return {name: s / total for name, s in found.items()}


def _train_reference(configs: Sequence[Config]) -> None:
    """Trains the reference on the batches of runs, one after the other, and does nothing else."""
    for config in configs:
        torch.set_num_threads(config.threads)
        tokens = prepare(config.data, config.token_folder).train
        trainer = reference.Trainer(reference_settings(config), config.seed)
        shape = {"batch_size": config.batch_size, "context": config.context}
        for step in range(config.steps):
            trainer.train(batches.train_batch(tokens, seed=config.seed, step=step, **shape))


def throughput(width: int, steps: int, runs: int) -> dict[str, float]:
    """Returns the runs an hour of a sweep on all cores, of the plain loop, and their ratio.

    Both times are from the first start of a process to the last end, without imports.
    """
    configs = [
        small_config(width, f"steps={steps}", f"eval_batches={EVAL_BATCHES}", f"seed={seed}") for seed in range(runs)
    ]
    prepare(configs[0].data, configs[0].token_folder)
    count = min(cores(), runs)
    with tempfile.TemporaryDirectory() as parent:
        warm = small_config(width, "steps=1", "eval_batches=1", "seed=1000")
        pool = Pool(Path(parent), [None] * count, [warm])
        _until_empty(pool)  # The server of the runs has all its imports now.
        started = time.monotonic()
        pool = Pool(Path(parent), [None] * count, list(configs))
        context = pool.context
        _until_empty(pool)
        sweep = time.monotonic() - started
        for run in (RunFolder(Path(parent) / config.run_name()) for config in configs):
            assert run.state() == "finished", run.status()
    started = time.monotonic()
    # From the same server as the runs, which has what they import.
    plain = [context.Process(target=_train_reference, args=(configs[slot::count],)) for slot in range(count)]
    for process in plain:
        process.start()
    for process in plain:
        process.join()
    loop = time.monotonic() - started
    assert all(process.exitcode == 0 for process in plain)
    hour = 3600 * runs
    return {"runs an hour": hour / sweep, "of the plain loop": hour / loop, "sweep / plain loop": loop / sweep}


def _until_empty(pool: Pool) -> None:
    while pool.waiting or pool.running:
        pool.step()
        pool.wait(1.0)
