"""What stands first in a block and lets tokens see each other: attention, or whatever takes its place.

Shape suffixes: B batch, T tokens, D model width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from models.carry import Carry
from models.layers import Linear

if TYPE_CHECKING:
    from models.attention.mixing.base import MixingRule

LogitRows = list[tuple[Linear, slice, float]]


class TokenMixer(nn.Module):
    """Base of what a block calls `attention`: it maps what its placement's norms give it to what joins the stream.

    A new mixer says of itself:

    its matrices    Each is a `Linear` made by the `make` that its constructor is given, with a role (`models.layers`).
                    Roles are what everything else goes by: inits scale the matrices that write to the stream (`out`,
                    `down`), DeepNorm and Sub-LN those of the branch, muP starts `query` at zero, nGPT normalizes along
                    the side that faces the stream. `make` is also where a placement puts its norms: a mixer whose
                    values and output go through `make` can be used with all of them. A matrix with none of these
                    roles is made as `Linear(fan_in, fan_out)`.
    its weights     `rule` is the rule that makes its T x T weights, None where it has none of its own. Probes of
                    logits and entropies, QK-clip and `train.amplification` ask for it.
    its logits      `logit_rows` says which rows of which matrices multiply a head's logits; empty without any.
    its probes      On a watch step (`carry.watch`) it records them: `carry.record("attention", {...})`.
    its values      If it has values of heads, it leaves them in `carry.first_BHTK` where that is still None.
    its draws       `draw` fills what the init axis does not: it knows `Linear` and `Embedding` alone.

    Its config declares the rest: `has_weights` and the other attributes of MixingConfig.
    """

    def forward(self, x_BTD: torch.Tensor, carry: Carry) -> torch.Tensor:
        """What is added to the residual stream. Token t may depend on tokens 0 to t alone."""
        raise NotImplementedError

    @property
    def rule(self) -> MixingRule | None:
        """The rule that makes its T x T weights."""
        return None

    def logit_rows(self) -> LogitRows:
        """What multiplies a head's logits by c: its rows of a matrix, by their place in the head, times c^power."""
        return []

    def draw(self, generator: torch.Generator) -> None:
        """Fills what starts in a way of its own, once the init axis has drawn the matrices."""
