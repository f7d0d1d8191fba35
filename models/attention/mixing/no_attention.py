"""No attention: a gated MLP replaces it, W_down (silu(W_gate x) * W_up x), which does not mix tokens.

The "MLP" of Xue et al. 2025 ("Deconstructing attention", arXiv 2510.11602), used there alone and in patterns with
standard attention. Its inner width of 4 D / 3, rounded, gives it about the 4 D^2 parameters of attention. Such a block
has no queries, keys or positions, and records no attention probes.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape
from models.attention.mixing.replacement import ReplacementConfig
from models.carry import Carry
from models.mixer import TokenMixer
from models.mlp import SwiGLU, hidden_width


class NoAttention(TokenMixer):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = SwiGLU(width, hidden_width(width, 4 / 3))

    def forward(self, x_BTD: torch.Tensor, carry: Carry) -> torch.Tensor:
        return self.mlp(x_BTD)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoAttentionConfig(ReplacementConfig):
    """A gated MLP in place of attention, with as many parameters.

    Xue et al. 2025 ("Deconstructing attention", arXiv 2510.11602).
    """

    name: Literal["mlp"] = "mlp"

    def mixer(self, layer: LayerShape) -> TokenMixer:
        return NoAttention(layer.width)
