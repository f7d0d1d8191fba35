"""Token mixers: the first sublayer of a block, which moves information between tokens (attention or a replacement).

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
    """Base class of a block's `attention`: maps the sublayer's input to its output.

    A new mixer provides:

    matrices      Each is a `Linear`, created by the constructor's argument `make` with a role (`models.layers`). Other
                  axes select matrices by role: inits scale those that write to the stream (`out`, `down`), DeepNorm and
                  Sub-LN scale those of the branch, muP starts `query` at zero, and nGPT normalizes along the side that
                  faces the stream. Placements insert their norms through `make`: a mixer whose values and output use it
                  works with all placements. A matrix that fits no role is created as `Linear(fan_in, fan_out)`.
    `rule`        The rule that computes its T x T weights, or None. Used by probes of logits and entropies, QK-clip and
                  `train.amplification`.
    `logit_rows`  Which rows of which matrices scale a head's logits; empty if it has no logits.
    probes        On a watch step (`carry.watch`) it calls `carry.record("attention", {...})`. A mixer without a rule
                  can report its explicit weights, as `hidden_attention` in models/attention/mixing/replacement.py.
    values        If it has per-head values, it stores them in `carry.first_BHTK` unless that is already set.
    `draw`        Initializes parameters that the init axis does not: that axis handles only `Linear` and `Embedding`.

    Its config declares the rest: `has_weights` and the other attributes of MixingConfig.
    """

    over_tokens = True  # whether its matrices see the tokens of a sequence in order, [B, T, ...]

    def forward(self, x_BTD: torch.Tensor, carry: Carry) -> torch.Tensor:
        """Returns what is added to the residual stream. Token t may depend only on tokens 0 to t."""
        raise NotImplementedError

    @property
    def rule(self) -> MixingRule | None:
        """Returns the rule that computes the T x T weights, or None."""
        return None

    def logit_rows(self) -> LogitRows:
        """Returns (matrix, rows within each head, power): scaling these by c^power scales the head's logits by c."""
        return []

    def draw(self, generator: torch.Generator) -> None:
        """Initializes parameters that the init axis does not, after that axis has filled the matrices."""
