"""`python -m train show=axes`: every choice; `show=parametrization [overrides]`: what a config does to each tensor."""

from __future__ import annotations

import re

import torch

from conf.axis import ConfigError, near
from models.gpt import GPT
from models.parametrization import ParameterGroup, scaling_of, tensors
from models.parametrization.base import SUBLAYERS, init_scale, initial_std
from train.cli.axes import table
from train.cli.terminal import table_console
from train.config.schema import Config


def show(what: str, config: Config) -> None:
    if what == "axes":
        print(table(), end="")
    elif what == "parametrization":
        show_parametrization(config)
    else:
        raise ConfigError(f"show={what} is not a choice: {near(what, ['axes', 'parametrization'])}")


def show_parametrization(config: Config) -> None:
    from rich.table import Table

    shown = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("tensor", "kind", "shape", "init x", "std", "output x", "peak LR", "decay a step at peak", "eps x"):
        shown.add_column(column, no_wrap=True)
    for row in together(rows(config)):
        shown.add_row(*row)
    chosen, size = config.parametrization, config.model
    scale = config.placement.attention_scale(size.head_dim, chosen.attention_scale(size.head_dim))
    branches = {sublayer: chosen.branch_scale(size, sublayer) for sublayer in SUBLAYERS}
    console = table_console()
    console.print(
        f"{chosen.name} at width {size.width}, depth {size.depth}; "
        f"attention scale {scale:.4g}, "
        f"branches x {' and '.join(f'{scale:.4g} ({sublayer})' for sublayer, scale in branches.items())}"
    )
    console.print(shown)


def together(rows: list[list[str]]) -> list[list[str]]:
    """One row for a tensor that is alike in several blocks: blocks.0,1.mlp.up.weight, blocks.0-11.mlp.up.weight."""
    blocks: dict[tuple[str, ...], list[str]] = {}
    for name, *values in rows:
        before, index, after = re.fullmatch(r"(blocks\.)?(?(1)(\d+))(.*)", name).groups()  # type: ignore[union-attr]
        blocks.setdefault((before or "", after, *values), []).append(index or "")
    return [[before + span(found) + after, *values] for (before, after, *values), found in blocks.items()]


def span(found: list[str]) -> str:
    """Numbers in ascending order; more than two that follow each other by the first and the last."""
    whole = len(found) > 2 and int(found[-1]) - int(found[0]) == len(found) - 1
    return f"{found[0]}-{found[-1]}" if whole else ",".join(found)


def rows(config: Config) -> list[list[str]]:
    """A row a tensor: name, kind, shape, multiplier of the init and the std that comes out, multiplier of the output,
    peak LR, share of the weights that decay takes there, multiplier of epsilon.

    Where the LR follows the RMS of the weights, it and coupled decay are that number x RMS. A std is that of the init
    axis and this table; `placement` may change it further.
    """
    with torch.device("meta"):
        model = GPT(config, vocab_size=config.data.vocab_size, context=config.context)
    found = []
    for tensor in tensors(model):
        scaling = scaling_of(config.parametrization, tensor, config.model)
        init = init_scale(config.parametrization, tensor, config.model, config.init)
        drawn = None if tensor.kind == "vector" else initial_std(tensor, config.model, config.init)
        group = ParameterGroup([tensor.parameter], tensor.kind, scaling)
        decay, fixed = config.optimizer.decay_at_peak(group), config.optimizer.fixed_decay(group)
        rms = " x RMS" if scaling.least_rms is not None else ""
        shape = "x".join(map(str, tensor.parameter.shape)) or "scalar"
        found.append(
            [
                tensor.name,
                tensor.kind,
                shape,
                f"{init:.4g}",
                "-" if drawn is None else f"{init * drawn:.4g}",
                f"{scaling.multiplier:.4g}",
                f"{config.optimizer.lr * config.optimizer.lr_scale(group):.4g}{rms}",
                f"{decay:.4g}{rms if decay != fixed else ''}",
                f"{scaling.eps:.4g}",
            ]
        )
    return found
