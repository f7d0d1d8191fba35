"""Trains several runs in one process; the forward and backward passes of their steps are one batched computation.

A small model's step on a GPU takes as long as the CPU needs to launch its kernels. Runs of equal shapes share the
launches: `torch.func.vmap` maps the loss over their stacked parameters. Everything else of a run is its own and takes
the path of a single run, in a thread: data, optimizer, schedule, clipping, probes, validation, files.

Shape suffixes: K runs, B batch, T tokens; T1 is T + 1 tokens, inputs and the last target.
"""

from __future__ import annotations

import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from conf.axis import ConfigError
from models.architecture import Architecture
from models.attention.mixing.base import MixingRule
from models.probes import Stats
from train.config.choices import default_choices
from train.config.schema import Config
from train.run.interrupt import Interrupted, Stopped, StopSignals
from train.run.module import Gradients, ProxyModule
from train.run.process import process_kept
from train.run.trainer import train_here

KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
"""Attention kernels of a pack. Inside vmap the memory-efficient one keeps nothing for its backward pass."""
DIFFERENT = {"fp32": 1e-3, "bf16": 0.05}
"""Largest relative difference between a batched and a single gradient in the trial. Rounding makes about 1e-6 in fp32,
and more where large terms cancel; draws that should differ between runs make about 1."""


class Asked(NamedTuple):
    module: ProxyModule
    tokens_BT1: torch.Tensor
    step: int


Found = tuple[torch.Tensor, Stats, Gradients]


class _Loss(nn.Module):
    """Makes the loss of a run a module's `forward`, as functional_call needs it."""

    def __init__(self, run: ProxyModule) -> None:
        super().__init__()
        self.run = run

    def forward(self, inputs_BT: torch.Tensor, tokens_BT1: torch.Tensor, step: int) -> tuple[torch.Tensor, Stats]:
        return self.run.loss_on(inputs_BT, tokens_BT1, False, step, 0)


class Stack:
    """Holds copies of the parameters of several runs as one tensor each, and computes their losses and gradients."""

    def __init__(self, modules: Sequence[ProxyModule]) -> None:
        self.modules = tuple(modules)
        self._loss = _Loss(modules[0])
        self._names = [name for name, _ in self._loss.named_parameters()]
        assert [id(p) for p in self._loss.parameters()] == [id(p) for p in modules[0].tensors]
        by_tensor = list(zip(*(m.tensors for m in modules), strict=True))
        self._stacks = [torch.stack([p.detach() for p in group]).requires_grad_() for group in by_tensor]
        self._sources = [p for group in by_tensor for p in group]
        self._copies = [part for stack in self._stacks for part in stack.detach().unbind()]
        owners = [list(_Loss(module).modules()) for module in modules]
        names = [name for name, _ in self._loss.named_modules()]
        self._buffers = {
            f"{name}.{key}": [(run[i], key) for run in owners]
            for i, name in enumerate(names)
            for key, buffer in owners[0][i]._buffers.items()
            if buffer is not None
        }
        self._versions = {name: self._version(name) for name in self._buffers}
        self._vary = {name for name in self._buffers if not self._equal(name)}

    def _values(self, name: str) -> list[torch.Tensor]:
        return [owner._buffers[key] for owner, key in self._buffers[name]]  # type: ignore[misc]

    def _equal(self, name: str) -> bool:
        first, *others = self._values(name)
        return all(torch.equal(first, other) for other in others)

    def _version(self, name: str) -> list[tuple[int, int]]:
        return [(id(buffer), buffer._version) for buffer in self._values(name)]

    def losses(self, tokens_KBT1: Sequence[torch.Tensor], step: int) -> list[Found]:
        """Returns loss, statistics and gradients of each run, for a batch of its own at the same step."""
        with torch.no_grad():
            torch._foreach_copy_(self._copies, self._sources)
        tensors, dims = dict(zip(self._names, self._stacks, strict=True)), dict.fromkeys(self._names, 0)
        # A buffer that has once changed in training may differ between the runs from then on.
        self._vary |= {n for n in self._buffers.keys() - self._vary if self._version(n) != self._versions[n]}
        for name in self._vary:
            tensors[name], dims[name] = torch.stack(self._values(name)), 0
        inputs = [m.inputs(x_BT1, step, 0) for m, x_BT1 in zip(self.modules, tokens_KBT1, strict=True)]

        def loss(tensors: dict[str, torch.Tensor], inputs_BT: torch.Tensor, tokens_BT1: torch.Tensor) -> Any:
            return functional_call(self._loss, tensors, (inputs_BT, tokens_BT1, step))

        device = tokens_KBT1[0].device.type
        # Autocast would keep the casts of tensors that exist inside vmap only.
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        with torch.autocast(device, dtype, enabled, cache_enabled=False), sdpa_kernel(KERNELS):
            batched = vmap(loss, in_dims=(dims, 0, 0))
            loss_K, stats = batched(tensors, torch.stack(inputs), torch.stack(list(tokens_KBT1)))
        found = torch.autograd.grad(loss_K.sum(), self._stacks, allow_unused=True)
        # Laid out like the weight, as autograd does by itself: torch's fused AdamW on CPUs misreads a transposed one.
        gradients = [[None] * len(self.modules) if g is None else g.contiguous().unbind() for g in found]
        each = zip(*gradients, strict=True)
        return [
            (value, {name: v[k].detach() for name, v in stats.items()}, of_run)
            for k, (value, of_run) in enumerate(zip(loss_K.detach().unbind(), each, strict=True))
        ]


class Pack:
    """Makes the threads of several runs wait for each other at each step, and computes the step of all at once.

    Runs that are behind, after a resume, are trained first, until they have come up to the others.
    """

    def __init__(self, runs: int) -> None:
        self._turn = threading.Condition()
        self._training = set(range(runs))
        self._waiting: dict[int, Asked] = {}
        self._found: dict[int, Found | Exception] = {}
        self._stack: Stack | None = None

    def loss(self, run: int, module: ProxyModule, tokens_BT1: torch.Tensor, step: int) -> Found:
        """Returns loss, statistics and gradients of a run's step, after all other runs have asked for theirs."""
        with self._turn:
            self._waiting[run] = Asked(module, tokens_BT1, step)
            while run not in self._found:
                if self._waiting.keys() == self._training:
                    self._compute()
                    self._turn.notify_all()
                else:
                    self._turn.wait()
            found = self._found.pop(run)
        if isinstance(found, Exception):
            raise found
        return found

    def leave(self, run: int) -> None:
        """Lets the others go on without a run that has ended."""
        with self._turn:
            self._training.discard(run)
            self._stack = None
            self._turn.notify_all()

    def _compute(self) -> None:
        step = min(asked.step for asked in self._waiting.values())
        due = {run: asked for run, asked in sorted(self._waiting.items()) if asked.step == step}
        try:
            modules = tuple(asked.module for asked in due.values())
            if self._stack is None or self._stack.modules != modules:
                self._stack = Stack(modules)
            found: Sequence[Any] = self._stack.losses([asked.tokens_BT1 for asked in due.values()], step)
        except Exception as fault:
            found = [fault] * len(due)
        for run, result in zip(due, found, strict=True):
            self._found[run] = result
            del self._waiting[run]


class Member(pl.Callback):
    """Makes a run take its steps with the others of a pack."""

    def __init__(self, pack: Pack, run: int) -> None:
        self.pack, self.run = pack, run

    def on_fit_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, ProxyModule)
        module.shared = partial(self.pack.loss, self.run)


def train_pack(
    configs: Sequence[Config], parent: Path, patience: float = 0.0, again: bool = False
) -> list[BaseException | None]:
    """Trains runs that differ in seed and peak learning rate alone and that require_packable accepts, as `train` does.

    Returns for each run the exception that ended it, or None.

    A run that ends or fails doesn't stop the others. A signal stops all of them, each with a checkpoint.
    """
    pack = Pack(len(configs))
    ends: list[BaseException | None] = [None] * len(configs)

    def one(run: int, config: Config) -> None:
        try:
            train_here(config, parent=parent, callbacks=[Member(pack, run)], patience=patience, again=again)
        except BaseException as fault:
            ends[run] = fault
            if not isinstance(fault, Interrupted | Stopped):
                print(f"{config.run_name()}:", *traceback.format_exception(fault), file=sys.stderr, flush=True)
        finally:
            pack.leave(run)

    with process_kept(configs[0].threads):
        _quiet()
        signals = StopSignals()
        signals.listen()
        # Daemons, so that a second Ctrl-C ends the process.
        threads = [threading.Thread(target=one, args=item, daemon=True) for item in enumerate(configs)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():  # A signal that another thread gets doesn't end a wait without a limit.
                    thread.join(0.5)
        finally:
            signals.restore()
    return ends


def require_packable(config: Config, runs_per_process: int) -> None:
    """Raises ConfigError if runs like this one can't share a process.

    Compares a batched step of two runs with the two single steps, which takes about a second for a small model.
    """
    problems = {
        f"accumulate={config.accumulate}": (config.accumulate > 1, "accumulate=1"),
        f"strategy={config.strategy}": (config.strategy == "fsdp", "strategy=auto"),
        "compile=true": (config.compile, "compile=false"),
        f"stop_when={config.stop_when}": (config.stop_when != "never", "stop_when=never"),
        "logger=wandb": (config.logger.name == "wandb", "logger=csv"),
    }
    for given, (wrong, instead) in problems.items():
        if wrong:
            raise ConfigError(
                f"launcher.runs_per_process={runs_per_process} clashes with {given}: use {instead} or "
                "launcher.runs_per_process=1"
            )
    if (fault := trial(config)) is not None:
        raise ConfigError(
            f"launcher.runs_per_process={runs_per_process}: runs with {_choices(config)} can't share a process: "
            f"{fault}: use launcher.runs_per_process=1"
        )


def trial(config: Config) -> str | None:
    """Returns why a step of runs like this one can't be batched, or None if it can. Runs on the CPU."""
    bound = DIFFERENT[config.precision]
    with process_kept(), torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        _quiet()
        modules = [ProxyModule(replace(config, seed=seed)) for seed in (config.seed, config.seed + 1)]
        for layer in modules[0].model.mixers():
            if layer.rule is not None and type(layer.rule).observe is not MixingRule.observe:
                return "the mixing rule keeps statistics of its batches"
        if modules[0].model.expert_layers():
            return "the MLP routes tokens by their values"
        generator = torch.Generator().manual_seed(0)
        shape_BT1 = (min(2, config.batch_size), config.context + 1)
        tokens = [torch.randint(config.data.vocab_size, shape_BT1, generator=generator) for _ in modules]
        for module, tokens_BT1 in zip(modules, tokens, strict=True):
            module.calibrate(tokens_BT1)
        try:
            batched = Stack(modules).losses(tokens, 1)
            for module, tokens_BT1, (loss, _, gradients) in zip(modules, tokens, batched, strict=True):
                single = module.step_loss(tokens_BT1, 1)
                single.backward()
                pairs: list[tuple[torch.Tensor | None, torch.Tensor | None]] = [(loss, single.detach())]
                pairs += [(g, p.grad) for g, p in zip(gradients, module.tensors, strict=True)]
                if not all(_close(*pair, bound) for pair in pairs):
                    return (
                        f"batched, with {_choices(config)}, their losses or gradients differ from those of single runs"
                    )
        except Exception as fault:  # vmap and torch raise errors of many kinds
            reason = textwrap.shorten(str(fault), 120, placeholder=" ...")
            return f"torch.func.vmap can't batch their step ({reason})"
    return None


def _choices(config: Config) -> str:
    """Returns the choices of a config that decide what a step computes, without those that are the default."""
    values, usual = config.values(), default_choices()
    of_model = [field.name for field in fields(Architecture)]
    chosen = {name: values[name]["name"] for name in ("loss", *of_model) if name in usual and name != "model"}
    return (
        " ".join(f"{name}={choice}" for name, choice in chosen.items() if choice != usual[name])
        or "the default choices"
    )


def _close(found: torch.Tensor | None, expected: torch.Tensor | None, bound: float) -> bool:
    if found is None or expected is None:
        return all(x is None or not x.any() for x in (found, expected))
    return bool((found - expected).norm() <= bound * expected.norm() + 1e-7)


def _quiet() -> None:
    # torch's attention for CPUs runs in a loop over the runs.
    warnings.filterwarnings("ignore", ".*not yet implemented the batching rule for.*")
