"""Replacements of attention: mixers of a block that are not a rule inside an attention layer.

They have no queries, keys and values that layouts, qk-norm, positions, sinks, gates and temperatures could act on.
Shape suffixes: B batch, H heads, G channels or heads of the mixer, T tokens.
"""

from typing import TYPE_CHECKING

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import LONGEST, MixingConfig
from models.probes import Stats, weight_stats

if TYPE_CHECKING:
    from models.architecture import Architecture


OFF = {"layout": "mha", "qk_source": "stream", "temperature": "none", "sink": "none", "gate": "none"}
"""Axes of attention, and their choices that are inactive without it."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ReplacementConfig(MixingConfig):
    has_weights = False

    def fits(self, config: "Architecture") -> None:
        if self.pattern == "all":
            for axis, name in OFF.items():
                given = getattr(config, axis).name
                if config.attention is self and given != name:
                    raise ValueError(
                        f"attention={self.name} has no attention that {axis}={given} could act on: "
                        f"use {axis}={name} or attention=softmax"
                    )
        if config.value_residual is not None:
            raise ValueError(
                f"attention={self.name} has blocks without values, but value_residual={config.value_residual} adds to "
                f"them: use value_residual=null or attention=softmax"
            )
        if config.placement.wraps_projections or config.placement.sets_initial_scale:
            raise ValueError(
                f"attention={self.name} has blocks without projections, but placement={config.placement.name} changes "
                f"them: use placement=pre or attention=softmax"
            )


@torch.no_grad()
def hidden_attention(weights_BGTT: torch.Tensor, heads: int) -> Stats:
    """Returns `weight_stats` of a mixer's explicit weights, means over the G / H matrices that come one after another.

    The hidden attention of Ali, Zimerman & Wolf 2024 (arXiv 2403.01590): any linear mixer is a T x T matrix.
    """
    found = weight_stats(weights_BGTT)
    return {n: v if v.dim() == 0 else v.unflatten(0, (heads, -1)).mean(1) for n, v in found.items()}


def watched(length: int) -> bool:
    """Returns whether explicit weights of this many tokens are small enough for probes."""
    return length <= LONGEST
