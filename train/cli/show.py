"""`stabilab train show=...` prints without training.

`axes` lists every choice, in a pipe as a Markdown table. `config` is the config of the run as in its config.yaml, and
`parametrization` lists the init, LR and decay of each tensor.
"""

from __future__ import annotations

import re
from dataclasses import asdict

import torch

from conf.axis import ConfigError, near
from models.gpt import GPT
from models.parametrization import ParameterGroup, scaling_of, tensors
from models.parametrization.base import SUBLAYERS, init_scale, initial_std
from train.cli import axes
from train.cli.tables import plain_table, print_table
from train.cli.terminal import table_console
from train.config.compose import to_yaml
from train.config.schema import Config
from train.run.derived import tokens_per_step


def show(what: str, config: Config) -> None:
    """Prints what the word asks for. Raises ConfigError for an unknown one."""
    if what == "axes":
        axes.show(table_console())
    elif what == "config":
        print(f"# {config.run_name()}\n{to_yaml(config)}", end="")
    elif what == "parametrization":
        show_parametrization(config)
    else:
        raise ConfigError(f"show={what} is not a choice: {near(what, ['axes', 'config', 'parametrization'])}")


def show_parametrization(config: Config) -> None:
    columns = ("tensor", "kind", "shape", "init x", "std", "output x", "peak LR", "decay per step", "eps x")
    shown = plain_table(*columns)
    for row in merged(rows(config)):
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
    print_table(console, shown)


def merged(rows: list[list[str]]) -> list[list[str]]:
    """Merges the rows of a tensor that are equal in several blocks, for instance to blocks.0-11.mlp.up.weight."""
    blocks: dict[tuple[str, ...], list[str]] = {}
    for name, *values in rows:
        before, index, after = re.fullmatch(r"(blocks\.)?(?(1)(\d+))(.*)", name).groups()  # type: ignore[union-attr]
        blocks.setdefault((before or "", after, *values), []).append(index or "")
    return [[before + span(indices) + after, *values] for (before, after, *values), indices in blocks.items()]


def span(indices: list[str]) -> str:
    """Formats ascending indices: 0-2 for more than two consecutive ones, otherwise 0,1 or 0,2,5."""
    consecutive = len(indices) > 2 and int(indices[-1]) - int(indices[0]) == len(indices) - 1
    return f"{indices[0]}-{indices[-1]}" if consecutive else ",".join(indices)


def rows(config: Config) -> list[list[str]]:
    """Returns one row of text per tensor, with the columns of `show_parametrization`.

    These are name, kind, shape, init multiplier and resulting std, output multiplier, peak LR, share of the weights
    that decay removes per step at the peak LR, and epsilon multiplier. If the LR is relative to the RMS of the weights,
    it and coupled decay are given as a number x RMS. The std does not include later changes by `placement`.
    """
    with torch.device("meta"):
        model = GPT(config, vocab_size=config.data.vocab_size, context=config.context)
    optimizer = config.optimizer.in_force(config.steps, tokens_per_step(config))
    table = []
    for tensor in tensors(model):
        scaling = scaling_of(config.parametrization, tensor, config.model, asdict(optimizer.groups))
        init = init_scale(config.parametrization, tensor, config.model, config.init)
        drawn = None if tensor.kind == "vector" else initial_std(tensor, config.model, config.init)
        routers = [tensor.parameter] if tensor.routes else []
        group = ParameterGroup([tensor.parameter], tensor.kind, scaling, routers)
        decay, fixed = optimizer.decay_at_peak(group), optimizer.fixed_decay(group)
        rms = " x RMS" if scaling.least_rms is not None else ""
        shape = "x".join(map(str, tensor.parameter.shape)) or "scalar"
        table.append(
            [
                tensor.name,
                tensor.kind,
                shape,
                f"{init:.4g}",
                "-" if drawn is None else f"{init * drawn:.4g}",
                f"{scaling.multiplier:.4g}",
                f"{optimizer.lr * optimizer.lr_scale(group):.4g}{rms}",
                f"{decay:.4g}{rms if decay != fixed else ''}",
                f"{scaling.eps:.4g}",
            ]
        )
    return table
