"""Rounds the weights and activations of trained models to 8 and 4 bits, and measures their loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.gpt import GPT
from models.layers import Embedding, Linear
from models.norms import DynamicTanh, LayerNorm, PreAffine, RMSNorm, SimpleRMSNorm
from models.placement.base import Placement
from train.cli.tables import plain_table, print_table
from train.cli.terminal import table_console
from train.config.schema import Config
from train.measure.side import side_passes
from train.results.trained import config_of, loss_of, model_of, training_of, unmapped, validation_of

BITS = (8, 4)
CALIBRATION, MOMENTUM = 16, 0.9
NORMS = LayerNorm | RMSNorm | SimpleRMSNorm | PreAffine | DynamicTanh
ROUNDINGS = ("fp32", "W8", "W4", "W8A8", "W4A4")


def rounded_weight(weight: torch.Tensor, bits: int, rows: bool = False) -> torch.Tensor:
    """Rounds to the nearest of 2^bits - 1 equally spaced values around zero; the largest magnitude is one of them."""
    largest = weight.abs().amax(-1, keepdim=True) if rows else weight.abs().max()
    scale = (largest / (2 ** (bits - 1) - 1)).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight / scale).round() * scale


def rounded_activation(x: torch.Tensor, bits: int, low: float, high: float) -> torch.Tensor:
    """Rounds to the nearest of 2^bits equally spaced values from low to high, one of them exactly zero.

    Without a finite range nothing can be rounded, and everything is NaN.
    """
    if not math.isfinite(high - low):
        return torch.full_like(x, math.nan)
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return x
    most = 2**bits - 1
    scale = (high - low) / most
    zero = round(-low / scale)
    return (((x / scale).round() + zero).clamp(0, most) - zero) * scale


class Range:
    """A running minimum and maximum."""

    def __init__(self) -> None:
        self.low, self.high, self.seen = 0.0, 0.0, 0

    def see(self, x: torch.Tensor) -> None:
        low, high = float(x.min()), float(x.max())
        keep = MOMENTUM if self.seen else 0.0
        self.low, self.high = keep * self.low + (1 - keep) * low, keep * self.high + (1 - keep) * high
        self.seen += 1


Change = Callable[[str, torch.Tensor], torch.Tensor | None]


@contextmanager
def at_activations(model: GPT, change: Change) -> Iterator[None]:
    """Passes every activation that is rounded to `change`, with its name; what that returns takes its place.

    Those of a side stream's blocks, which are the same for all data, stay as they are.
    """

    def output(name: str) -> Callable[..., Any]:
        return lambda module, args, y: change(name, y) if y.numel() and not aside() else None

    def entering(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            found = change(f"{name}.input", args[0]) if args[0].numel() and not aside() else None
            return None if found is None else (found, *args[1:])

        return hook

    hooks = []
    for name, module in model.named_modules():
        if name == "head":
            continue
        if isinstance(module, Embedding | Linear | Placement | NORMS):
            hooks.append(module.register_forward_hook(output(name)))
        if isinstance(module, Linear) and module.writes_stream:
            hooks.append(module.register_forward_pre_hook(entering(name)))
    with side_passes(model) as aside:
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@torch.no_grad()
def ranges(model: GPT, batches: Sequence[torch.Tensor]) -> dict[str, Range]:
    """Returns the range of each activation."""
    found: dict[str, Range] = {}

    def see(name: str, x: torch.Tensor) -> None:
        found.setdefault(name, Range()).see(x)

    with at_activations(model, see):
        for tokens_BT1 in batches:
            model(tokens_BT1[:, :-1])
    return found


@contextmanager
def rounded_weights(model: GPT, bits: int, rows: bool) -> Iterator[None]:
    """Rounds embeddings and matrices of the blocks for the duration of a `with` block."""
    modules = [m for n, m in model.named_modules() if isinstance(m, Embedding | Linear) and n != "head"]
    before = [m.weight.detach().clone() for m in modules]
    with torch.no_grad():
        for module in modules:
            module.weight.copy_(rounded_weight(module.weight, bits, rows))
    try:
        yield
    finally:
        with torch.no_grad():
            for module, weight in zip(modules, before, strict=True):
                module.weight.copy_(weight)


def losses(model: GPT, config: Config, batches: list[torch.Tensor], seen: dict[str, Range], rows: bool) -> list[float]:
    """Returns the loss for each of ROUNDINGS."""
    found = {"fp32": loss_of(model, config, batches)}
    for bits in BITS:

        def to_nearest(name: str, x: torch.Tensor, bits: int = bits) -> torch.Tensor | None:
            return rounded_activation(x, bits, seen[name].low, seen[name].high) if name in seen else None

        with rounded_weights(model, bits, rows):
            found[f"W{bits}"] = loss_of(model, config, batches)
            with at_activations(model, to_nearest):
                found[f"W{bits}A{bits}"] = loss_of(model, config, batches)
    return [found[name] for name in ROUNDINGS]


def losses_of_run(path: Path, rows: bool = False) -> list[float]:
    """Returns the losses of a trained run for ROUNDINGS, NaN where its weights are. Raises ConfigError if the folder
    has no trained run."""
    config = config_of(path)
    model = unmapped(model_of(path, config, finite=False))
    batches = validation_of(config)
    return losses(model, config, batches, ranges(model, training_of(config, count=CALIBRATION)), rows)


def measured(path: Path) -> dict[str, float]:
    """Returns the losses of a trained run for ROUNDINGS in nats, by name, with a scale for each tensor of weights.

    A loss that is not a number counts as infinite.
    """
    return {name: math.inf if math.isnan(loss) else loss
            for name, loss in zip(ROUNDINGS, losses_of_run(path), strict=True)}  # fmt: skip


def print_found(paths: Sequence[Path], rows: bool) -> None:
    console = table_console()
    shown = plain_table("run", *ROUNDINGS)
    for path in paths:
        plain, *more = losses_of_run(path, rows)
        shown.add_row(path.name, f"{plain:.4f}", *(f"{loss:.4f} ({loss - plain:+.4f})" for loss in more))
    print_table(console, shown, "run")
