"""Counts the dead and positional neurons in the MLPs of trained models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from conf.axis import ConfigError
from models.gpt import GPT, Block
from models.layers import Linear
from train.cli.tables import plain_table, print_table
from train.cli.terminal import table_console
from train.measure.side import side_passes
from train.results.trained import config_of, model_of, require_blocks, validation_of

POSITIONAL = 0.05


class Neurons(NamedTuple):
    """The neurons of a block."""

    dead: float
    active: float
    """Mean share of tokens on which a neuron is active."""
    positional: float | None
    """Share of neurons with more than POSITIONAL nats of positional information."""


def information(share_TF: torch.Tensor, sequences: int) -> torch.Tensor:
    """Returns the mutual information of activity and position of each neuron, [F], from its active share by position
    in so many sequences.

    Entropies of shares are too low, by 1 / (2 n) of n draws in the mean if they aren't constant (Miller 1955), and at
    each position the draws are few. What this adds to the information is subtracted.
    """

    def entropy(p: torch.Tensor) -> torch.Tensor:
        return torch.special.entr(p) + torch.special.entr(1 - p)

    found_F = entropy(share_TF.mean(0)) - entropy(share_TF).mean(0)
    varies_F = ((share_TF > 0) & (share_TF < 1)).sum(0)
    return found_F - (varies_F - 1).clamp_min(0) / (2 * sequences * len(share_TF))


@torch.no_grad()
def neurons(model: GPT, batches: Sequence[torch.Tensor]) -> list[Neurons]:
    """Measures each block on batches of shape [B, T + 1]. Shape suffixes: B batch, T tokens, F neurons."""
    counts: dict[Linear, Any] = {}
    seen: dict[Linear, int] = {}  # sequences; of experts, tokens

    layers = [[m for m in b.mlp.modules() if isinstance(m, Linear) and m.role == "activated"]
              for b in model.blocks if isinstance(b, Block)]  # fmt: skip
    mixture = bool(model.expert_layers())
    in_front = 0 if model.sink_token is None or mixture else model.sink_token.num_embeddings

    def see(linear: Any, args: Any, z_BTF: torch.Tensor) -> None:
        if aside():
            return
        z_BTF = z_BTF[:, in_front:] if in_front else z_BTF
        # The tokens of an expert are gathered: their number differs from batch to batch.
        counts[linear] = counts.get(linear, 0) + (z_BTF > 0).double().sum(0, keepdim=mixture)
        seen[linear] = seen.get(linear, 0) + len(z_BTF)

    with side_passes(model) as aside:
        hooks = [m.register_forward_hook(see) for of_block in layers for m in of_block]
        try:
            for tokens_BT1 in batches:
                model(tokens_BT1[:, :-1])
        finally:
            for hook in hooks:
                hook.remove()
    return [_of_block([counts[m] / max(1, seen[m]) for m in of_block], None if mixture else seen[of_block[0]])
            for of_block in layers]  # fmt: skip


def _of_block(shares_TF: Sequence[torch.Tensor], sequences: int | None) -> Neurons:
    mean_F = torch.cat([share_TF.mean(0) for share_TF in shares_TF])
    positional = None
    if sequences is not None:
        positional = float((information(shares_TF[0], sequences) > POSITIONAL).double().mean())
    return Neurons(float((mean_F == 0).double().mean()), float(mean_F.mean()), positional)


def neurons_of_run(path: Path) -> list[Neurons]:
    """Measures the blocks of a trained run.

    Raises ConfigError if the folder or its model has none, or if no single matrix makes what enters the non-linearity.
    """
    config = config_of(path)
    require_blocks(path, config)
    if not config.mlp.has_neurons:
        raise ConfigError(
            f"{path}: mlp={config.mlp.name} mixes or shifts the outputs of matrices before its non-linearity: choose a "
            f"run with another MLP or router"
        )
    batches = validation_of(config)
    return neurons(model_of(path, config), batches)


def print_found(paths: Sequence[Path]) -> None:
    console = table_console()
    shown = plain_table("run", "block", "dead", "active", "positional")
    for path in paths:
        for block, found in enumerate(neurons_of_run(path)):
            positional = "-" if found.positional is None else f"{found.positional:.1%}"
            shown.add_row(path.name, str(block), f"{found.dead:.1%}", f"{found.active:.1%}", positional)
    print_table(console, shown, "run")
