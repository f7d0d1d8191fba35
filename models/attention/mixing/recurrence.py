"""Parts that recurrent rules share: decay with a learned rate and step, and convolved queries, keys and values.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from models.attention.convolution import CausalConvolution
from models.attention.mixing.base import LayerShape
from models.layers import Drawn

LEAST_STEP, FIRST_STEP, LAST_STEP = 1e-4, 1e-3, 1e-1


class Rates(Drawn):
    """Learned rates A > 0 and step biases, from which log decays are -A softplus(y + bias). Weight decay skips both.

    A is drawn uniformly between `low` and `high`, and softplus(bias) log-uniformly between 0.001 and 0.1, as in Mamba
    (state-spaces/mamba; Dao & Gu 2024, arXiv 2405.21060).
    """

    decays = False

    def __init__(self, channels: int, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.log_rate = nn.Parameter(torch.full((channels,), math.log((low + high) / 2)))
        self.step_bias = nn.Parameter(torch.full((channels,), math.log(math.expm1(0.01))))

    def draw(self, generator: torch.Generator) -> None:
        # A rate of exactly zero would have no logarithm.
        self.log_rate.uniform_(self.low, self.high, generator=generator).clamp_min_(1e-4).log_()
        draw_steps(self.step_bias, generator)

    def step(self, y: torch.Tensor) -> torch.Tensor:
        """Returns softplus(y + bias) of [..., channels]."""
        # As logsigmoid: softplus's gradient has strides that torch.compile predicts wrongly.
        return -F.logsigmoid(-(y + self.step_bias))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """Returns the log decays of [..., channels]."""
        return -self.log_rate.exp() * self.step(y)


def draw_steps(bias: torch.Tensor, generator: torch.Generator) -> None:
    """Fills step biases so that softplus(bias) is log-uniform between 0.001 and 0.1."""
    bias.uniform_(math.log(FIRST_STEP), math.log(LAST_STEP), generator=generator).exp_().clamp_min_(LEAST_STEP)
    bias.copy_(bias + torch.log(-torch.expm1(-bias)))  # the inverse of softplus


class Convolved(nn.Module):
    """silu of the causal convolution of [B, H, T, K], with taps of its own for each feature of each head, in fp32."""

    def __init__(self, layer: LayerShape, taps: int) -> None:
        super().__init__()
        self.convolution = CausalConvolution(taps, layer.heads, 1, layer.head_dim)

    def forward(self, x_BHTK: torch.Tensor) -> torch.Tensor:
        return F.silu(self.convolution(x_BHTK.float()))
