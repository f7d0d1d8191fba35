"""State that one forward pass hands from block to block.

Shape suffixes: B batch, H heads, T tokens, S latents of a sequence, K head dimension, D model width.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, NamedTuple

import torch

from models.probes import Stats

if TYPE_CHECKING:
    from models.attention.mixing.base import Inputs, MixingRule


class Lender(NamedTuple):
    """What the first block of a group hands to the blocks that reuse its attention weights."""

    mix: MixingRule
    inputs: Inputs


class Carry:
    """Mutable state of one forward pass, read and written by the blocks.

    Which fields are None depends only on the config, never on tensor values, so a compiled graph needs no branches.
    This is deliberately not a dataclass. FSDP2 copies the containers that it knows, such as dataclasses and lists,
    before it calls a block, so the block's writes would be lost. It passes objects of other classes through.
    """

    def __init__(
        self,
        *,
        watch: bool = False,
        keep_maxima: bool = False,
        recompute_core: bool = False,
        first_BHTK: torch.Tensor | None = None,
        side: bool = False,
    ) -> None:
        self.watch = watch
        """Whether this is a watch step, on which all probes are taken."""
        self.keep_maxima = keep_maxima
        """Whether to record the largest logit of each head, on watch steps and all others."""
        self.recompute_core = recompute_core
        """Whether the backward pass computes the mixing rule's part again instead of keeping it."""
        self.again = False
        """Whether this runs a block for the second time, in the backward pass: it may change no state."""
        self.side = side
        """Whether this is the pass of a side stream, whose tokens are not those of the batch."""
        self.block = 0
        """Index of the running block, from 0."""
        self.first_BHTK = first_BHTK
        """Values of the first block that has any, after its value projection and norm."""
        self.source_BTD: torch.Tensor | None = None
        """Input of the query and key projections if it differs from that of values. May have batch size 1."""
        self.read_BTD: torch.Tensor | None = None
        """Input of the block's token mixer, after the placement's norms."""
        self.token_BTD: torch.Tensor | None = None
        """The token stream, if the model has two streams."""
        self.latents_BSD: torch.Tensor | None = None
        """Latents that mixers update from block to block, next to the stream."""
        self.lender: Lender | None = None
        """Weights of the last block that shares them with later blocks."""
        self.losses: list[torch.Tensor] = []
        """Losses of layers, to be added to the objective."""
        self.stats: Stats = {}
        """Probes recorded so far."""

    def replay(self) -> Carry:
        """Returns a carry for running the next block again from the same state, without probes."""
        found = copy.copy(self)
        found.again, found.watch, found.keep_maxima = True, False, False
        found.losses, found.stats = [], {}
        return found

    def record(self, where: str, found: Stats) -> None:
        """Adds probes of the running block; `where` is `attention`, `state`, `residual` or `router`."""
        for name, value in found.items():
            self.stats[f"{where}/block{self.block}/{name}"] = value
