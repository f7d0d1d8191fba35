"""A gated short convolution in place of attention: it mixes the last few tokens.

    u_1, u_2 = W_1 x, W_2 x;    out = W_out (silu(conv(u_1)) * u_2)

u_1 and u_2 have expand D / 2 channels; the convolution is causal, depthwise and without a bias. The gated BaseConv of
Based (Arora et al. 2024, arXiv 2402.18668; HazyResearch/based, based/models/mixers/convolution.py), where it fills the
blocks between linear and window attention: attention=based attention.pattern=[short_conv,self,window,short_conv,
short_conv]. There both projections have biases; here, as everywhere in the model, they have none. It has no queries,
keys or positions, and records no attention probes.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.convolution import CausalConvolution
from models.attention.mixing.base import ATTENTION, LayerShape
from models.attention.mixing.replacement import ReplacementConfig
from models.carry import Carry
from models.layers import Linear
from models.mixer import TokenMixer
from models.mlp import hidden_width


class ShortConvolution(TokenMixer):
    def __init__(self, width: int, expand: float, taps: int) -> None:
        super().__init__()
        inner = hidden_width(width, expand / 2)
        self.convolved, self.gate = Linear(width, inner, "value"), Linear(width, inner)
        self.convolution = CausalConvolution(taps, inner)
        self.out = Linear(inner, width, "out")

    def draw(self, generator: torch.Generator) -> None:
        self.convolution.draw(generator)

    def mixed(self, u1_BTI: torch.Tensor, u2_BTI: torch.Tensor) -> torch.Tensor:
        return F.silu(self.convolution(u1_BTI)) * u2_BTI

    def forward(self, x_BTD: torch.Tensor, carry: Carry) -> torch.Tensor:
        return self.out(self.mixed(self.convolved(x_BTD), self.gate(x_BTD)))


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ShortConvConfig(ReplacementConfig):
    """W_out (silu(conv(W_1 x)) * W_2 x) with a causal convolution over three tokens, in place of attention.

    Arora et al. 2024 (Based, arXiv 2402.18668), the gated BaseConv.
    """

    name: Literal["short_conv"] = "short_conv"
    expand: Annotated[float, Field(gt=0)] = 4.0
    """Channels of W_1 and W_2 together / model width."""
    taps: Annotated[int, Field(ge=2)] = 3
    """Tokens that the convolution spans."""

    def mixer(self, layer: LayerShape) -> TokenMixer:
        return ShortConvolution(layer.width, self.expand, self.taps)
