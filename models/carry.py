"""What one forward pass of a model hands on from block to block.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from models.probes import Stats

if TYPE_CHECKING:
    from models.attention.mixing.base import Inputs, MixingRule


class Lender(NamedTuple):
    """What the blocks of a group that shares attention weights see of its first."""

    mix: MixingRule
    inputs: Inputs


class Carry:
    """Made by a forward pass, read and written by its blocks. It lives no longer than the pass.

    Which fields are None depends on the config alone, never on the value of a tensor, so that a compiled graph has no
    branches of its own. It is no dataclass: FSDP2 hands a block a copy of the containers that it knows, dataclasses and
    lists among them, and what the block writes would be lost. An object of another class stays the same in all blocks.
    """

    def __init__(
        self, *, watch: bool = False, keep_maxima: bool = False, first_BHTK: torch.Tensor | None = None
    ) -> None:
        self.watch = watch
        """Whether this is a watch step: all probes are taken."""
        self.keep_maxima = keep_maxima
        """Whether the largest logit of each head is recorded, watched or not."""
        self.block = 0
        """The block that runs, counted from 0."""
        self.first_BHTK = first_BHTK
        """The values of the first block that has any, as they come out of its value projection and their norm."""
        self.source_BTD: torch.Tensor | None = None
        """What queries and keys are made of where that isn't what values are made of. One sequence serves the batch."""
        self.read_BTD: torch.Tensor | None = None
        """What the token mixer of the block read, after the norms of its placement."""
        self.token_BTD: torch.Tensor | None = None
        """The token stream of a model with two streams."""
        self.lender: Lender | None = None
        """Of the last block that made attention weights for others."""
        self.stats: Stats = {}
        """The probes taken so far."""

    def record(self, where: str, found: Stats) -> None:
        """Adds probes of the block that runs: `where` is `attention` or `residual`."""
        for name, value in found.items():
            self.stats[f"{where}/block{self.block}/{name}"] = value
