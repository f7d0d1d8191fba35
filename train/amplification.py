"""`python -m train.amplification RUN ...`: validation loss of trained runs with their attention logits multiplied.

Kerce & Fox 2026 (Dual-Stream Transformer, arXiv 2603.07461) multiply the logits of all heads by 1 to 16 when a model is
evaluated: attention goes from soft mixing to picking one token, and what the loss loses tells how much of the model
lives on the softness. Here what is multiplied is all that enters the rule as logits, scale q k^T and what positions add
to it. It says what it says for rules that are a function of these logits.

The loss is the plain cross-entropy over the run's own validation batches, nats a token, and its change relative to the
one with the logits as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from conf.axis import ConfigError
from models.gpt import GPT
from train.cli.terminal import exit_with, table_console
from train.results.trained import config_of, model_of, validation_of

FACTORS = (1.0, 2.0, 4.0, 8.0, 16.0)


@contextmanager
def amplified(model: GPT, factor: float) -> Iterator[None]:
    """The model with all attention logits times the factor."""

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
def losses(model: GPT, batches: Sequence[torch.Tensor], factors: Sequence[float] = FACTORS) -> list[float]:
    """Mean cross-entropy over the batches, [B, T + 1] each, at each factor."""
    found = []
    for factor in factors:
        with amplified(model, factor):
            each = [F.cross_entropy(model(b[:, :-1])[0].flatten(0, 1), b[:, 1:].flatten()) for b in batches]
        found.append(float(torch.stack(each).mean()))
    return found


def of_run(path: Path) -> list[float]:
    """ConfigError when there is no trained run, or when none of its blocks is a function of logits."""
    config = config_of(path)
    rules = config.attention.of_blocks(config.model.depth)
    for rule in rules:
        if rule.has_weights and not rule.dot_product:
            raise ConfigError(f"{path}: attention={rule.name} is no function of logits q k^T that could be multiplied")
    if not any(rule.has_weights for rule in rules):
        raise ConfigError(f"{path}: no block of this run has attention")
    batches = validation_of(config, batch_size=config.batch_size, count=config.eval_batches)
    return losses(model_of(path, config), batches)


def print_table(paths: Sequence[Path]) -> None:
    from rich.table import Table

    console = table_console(soft_wrap=True)
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", *(f"x {factor:g}" for factor in FACTORS)):
        shown.add_column(column, no_wrap=True)
    rows = {path: of_run(path) for path in paths}
    for path, (plain, *more) in rows.items():
        shown.add_row(path.name, f"{plain:.4f}", *(f"{loss:.4f} ({loss / plain - 1:+.1%})" for loss in more))
    console.print(shown)
    worst = max(rows, key=lambda path: rows[path][-1] / rows[path][0])
    console.print(
        f"attention logits x {FACTORS[-1]:g} change the validation loss by "
        f"{rows[worst][-1] / rows[worst][0] - 1:+.1%} at most, in {worst}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m train.amplification", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs that have ended")
    paths = parser.parse_args().runs
    exit_with(lambda: print_table(paths))


if __name__ == "__main__":
    main()
