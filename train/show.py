"""`python -m train show=axes`: every choice; `show=parametrization [overrides]`: what a config does to each tensor."""

from __future__ import annotations

import torch

from conf.axis import ConfigError, near
from models.gpt import GPT
from models.parametrization import rule_of, tensors
from train.axes_table import table
from train.config import Config


def show(what: str, config: Config) -> None:
    if what == "axes":
        print(table(), end="")
    elif what == "parametrization":
        show_parametrization(config)
    else:
        raise ConfigError(f"show={what} is not a choice: {near(what, ['axes', 'parametrization'])}")


def show_parametrization(config: Config) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("tensor", "kind", "shape", "init x", "output x", "peak LR", "decay a step at the peak", "eps x"):
        shown.add_column(column, no_wrap=True)
    for row in rows(config):
        shown.add_row(*row)
    name, size = config.parametrization.name, config.model
    scale = config.placement.attention_scale(size.head_dim, config.parametrization.attention_scale(size.head_dim))
    console = Console(highlight=False, width=160)
    console.print(
        f"{name} at width {size.width}, depth {size.depth}; "
        f"attention scale {scale:.4g}, "
        f"branches x {config.parametrization.branch_scale(size):.4g}"
    )
    console.print(shown)


def rows(config: Config) -> list[list[str]]:
    """A row a tensor: name, kind, shape, multipliers of init and output, peak LR, share of the weight that decay takes
    there, multiplier of epsilon."""
    with torch.device("meta"):
        model = GPT(config, vocab_size=config.data.vocab_size, context=config.context)
    found = []
    for tensor in tensors(model):
        rule = rule_of(config.parametrization, tensor, config.model)
        decay = config.optimizer.decay_at_peak(rule)
        shape = "x".join(map(str, tensor.parameter.shape)) or "scalar"
        values = (rule.init, rule.multiplier, config.optimizer.lr * rule.lr, decay, rule.eps)
        found.append([tensor.name, tensor.kind, shape, *(f"{value:.4g}" for value in values)])
    return found
