"""Causal depthwise convolution over tokens, which several mixers apply before they mix.

Shape suffixes: ... any leading dimensions, T tokens, C channels, W taps.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.layers import Drawn


class CausalConvolution(Drawn):
    """y_t = sum_w weight_w x_(t - W + 1 + w) + bias, channel by channel, with zeros before the first token.

    The taps run from the oldest token to the current one. As in torch's Conv1d they start uniform in +-1 / sqrt(W).
    `channels` is a shape that broadcasts against x without its tokens: (C,) for [B, T, C], (H, 1, K) for [B, H, T, K].
    """

    def __init__(self, taps: int, *channels: int, bias: bool = False) -> None:
        super().__init__()
        weight = torch.zeros(taps, *channels)
        weight[-1] = 1.0
        self.weight_WC = nn.Parameter(weight)
        self.bias_C = nn.Parameter(torch.zeros(channels)) if bias else None

    def draw(self, generator: torch.Generator) -> None:
        bound = len(self.weight_WC) ** -0.5
        for parameter in self.parameters():
            parameter.uniform_(-bound, bound, generator=generator)

    def forward(self, x_TC: torch.Tensor) -> torch.Tensor:
        taps, length = len(self.weight_WC), x_TC.shape[-2]
        padded = F.pad(x_TC, (0, 0, taps - 1, 0))
        y_TC = self.weight_WC[-1] * x_TC
        for w in range(taps - 1):
            y_TC = torch.addcmul(y_TC, self.weight_WC[w], padded[..., w : w + length, :])
        return y_TC if self.bias_C is None else y_TC + self.bias_C
