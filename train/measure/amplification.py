"""Measures the loss of trained models with amplified attention logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from conf.axis import ConfigError
from models.gpt import GPT
from train.cli.tables import plain_table, print_table
from train.cli.terminal import table_console
from train.config.schema import Config
from train.results.trained import config_of, loss_of, model_of, validation_of

FACTORS = (1.0, 2.0, 4.0, 8.0, 16.0)


@contextmanager
def amplified(model: GPT, factor: float) -> Iterator[None]:
    """Multiplies all attention logits of the model by the factor for the duration of a `with` block."""

    def multiply(mix: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inputs, v_BHTK = args
        bias_HTT = None if inputs.bias_HTT is None else factor * inputs.bias_HTT
        return inputs._replace(q_BHTK=factor * inputs.q_BHTK, bias_HTT=bias_HTT), v_BHTK

    hooks = [mixer.rule.register_forward_pre_hook(multiply) for mixer in model.mixers() if mixer.rule is not None]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def losses(
    model: GPT,
    config: Config,
    batches: Sequence[torch.Tensor],
    factors: Sequence[float] = FACTORS,
) -> list[float]:
    """Returns the mean cross-entropy over what the data counts of the batches, [B, T + 1] each, for each factor."""
    means = []
    for factor in factors:
        with amplified(model, factor):
            means.append(loss_of(model, config, batches))
    return means


def losses_of_run(path: Path) -> list[float]:
    """Returns the losses of a trained run for FACTORS.

    Raises ConfigError if the folder has no trained run, or if its mixing rules are not functions of logits q k^T.
    """
    config = config_of(path)
    rules = config.attention.of_blocks(config.model.depth)
    for rule in rules:
        if rule.has_weights and not rule.dot_product:
            raise ConfigError(f"{path}: attention={rule.name} has no logits q k^T to multiply: choose another run")
    if not any(rule.has_weights for rule in rules):
        raise ConfigError(f"{path}: no block of this run has attention: choose another run")
    batches = validation_of(config)
    return losses(model_of(path, config), config, batches)


def print_losses(paths: Sequence[Path]) -> None:
    console = table_console()
    shown = plain_table("run", *(f"x {factor:g}" for factor in FACTORS))
    rows = {path: losses_of_run(path) for path in paths}
    for path, (plain, *more) in rows.items():
        shown.add_row(path.name, f"{plain:.4f}", *(f"{loss:.4f} ({loss / plain - 1:+.1%})" for loss in more))
    print_table(console, shown, "run")
    change, worst = max((values[-1] / values[0] - 1, path) for path, values in rows.items())
    console.print(f"attention logits x {FACTORS[-1]:g} change the validation loss by {change:+.1%} at most, in {worst}")
