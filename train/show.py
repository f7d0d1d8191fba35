"""`python -m train show=axes`: every choice; `show=parametrization [overrides]`: what a config does to each tensor."""

from __future__ import annotations

import torch

from conf.axis import ConfigError, near
from models.gpt import GPT
from models.parametrization import tensors
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
    for column in ("tensor", "kind", "shape", "init x", "peak LR", "decay a step at the peak"):
        shown.add_column(column, no_wrap=True)
    for row in rows(config):
        shown.add_row(*row)
    name, width = config.parametrization.name, config.model.width
    head_dim = width // config.model.heads
    console = Console(highlight=False, width=160)
    console.print(f"{name} at width {width}; attention scale {config.parametrization.attention_scale(head_dim):.4g}")
    console.print(shown)


def rows(config: Config) -> list[list[str]]:
    """A row a tensor: name, kind, shape, init multiplier, peak LR, share of the weight that decay takes there."""
    with torch.device("meta"):
        model = GPT(config, vocab_size=config.data.vocab_size, context=config.context)
    found = []
    for name, parameter, kind in tensors(model):
        rule = config.parametrization.rule(kind, name, config.model.width)
        lr = config.optimizer.lr * rule.lr
        decay = config.optimizer.decay_at_peak(lr)
        shape = "x".join(map(str, parameter.shape)) or "scalar"
        found.append([name, kind, shape, f"{rule.init:.4g}", f"{lr:.4g}", f"{decay:.4g}"])
    return found
