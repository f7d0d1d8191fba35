"""No attention: a gated MLP replaces it, W_down (silu(W_gate x) * W_up x), which does not mix tokens.

The "MLP" of Xue et al. 2025 ("Deconstructing attention", arXiv 2510.11602), used there alone and in patterns with
standard attention. Its inner width of 4 D / 3, rounded, gives it about the 4 D^2 parameters of attention. Such a block
has no queries, keys or positions, and records no attention probes.
"""

from typing import TYPE_CHECKING, Literal

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, MixingConfig
from models.carry import Carry
from models.mixer import TokenMixer
from models.mlp import SwiGLU, hidden_width

if TYPE_CHECKING:
    from models.architecture import Architecture


OFF = {"layout": "mha", "qk_source": "stream", "temperature": "none", "sink": "none", "gate": "none"}
"""Axes of attention, and their choices that are inactive without it."""


class NoAttention(TokenMixer):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = SwiGLU(width, hidden_width(width, 4 / 3))

    def forward(self, x_BTD: torch.Tensor, carry: Carry) -> torch.Tensor:
        return self.mlp(x_BTD)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoAttentionConfig(MixingConfig):
    """A gated MLP in place of attention, with as many parameters.

    Xue et al. 2025 ("Deconstructing attention", arXiv 2510.11602).
    """

    name: Literal["mlp"] = "mlp"
    has_weights = False

    def mixer(self, width: int) -> TokenMixer:
        return NoAttention(width)

    def fits(self, config: "Architecture") -> None:
        if self.pattern == "all":
            for axis, name in OFF.items():
                given = getattr(config, axis).name
                if config.attention is self and given != name:
                    raise ValueError(
                        f"attention=mlp has no attention that {axis}={given} could act on: "
                        f"use {axis}={name} or attention=softmax"
                    )
        if config.value_residual is not None:
            raise ValueError(
                f"attention=mlp has blocks without values, but value_residual={config.value_residual} adds to them: "
                f"use value_residual=null or attention=softmax"
            )
        if config.placement.wraps_projections or config.placement.sets_initial_scale:
            raise ValueError(
                f"attention=mlp has blocks without projections, but placement={config.placement.name} changes them: "
                f"use placement=pre or attention=softmax"
            )
