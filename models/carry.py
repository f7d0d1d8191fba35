"""What one forward pass of a model hands on from block to block.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import torch

from models.probes import Stats

if TYPE_CHECKING:
    from models.attention.mixing.base import Inputs, MixingRule


class Lender(NamedTuple):
    """What the blocks of a group that shares attention weights see of its first."""

    mix: MixingRule
    inputs: Inputs


@dataclasses.dataclass(eq=False)
class Carry:
    """Made by a forward pass, read and written by its blocks. It lives no longer than the pass.

    Which fields are None depends on the config alone, never on the value of a tensor, so that a compiled graph has no
    branches of its own. FSDP2 takes an object of this kind as it is, where it would give each block a copy of a list.
    """

    watch: bool = False
    """Whether this is a watch step: all probes are taken."""
    keep_maxima: bool = False
    """Whether the largest logit of each head is recorded, watched or not."""
    block: int = 0
    """The block that runs, counted from 0."""
    first_BHTK: torch.Tensor | None = None
    """The values of the first block that has any, as they come out of its value projection and their norm."""
    source_BTD: torch.Tensor | None = None
    """What queries and keys are made of where that is not what values are made of. One sequence serves the batch."""
    read_BTD: torch.Tensor | None = None
    """What the token mixer of the block read, after the norms of its placement."""
    token_BTD: torch.Tensor | None = None
    """The token stream of a model with two streams."""
    lender: Lender | None = None
    """Of the last block that made attention weights for others."""
    stats: Stats = dataclasses.field(default_factory=dict)
    """The probes taken so far."""

    def record(self, where: str, found: Stats) -> None:
        """Adds probes of the block that runs: `where` is `attention` or `residual`."""
        for name, value in found.items():
            self.stats[f"{where}/block{self.block}/{name}"] = value
