"""A per-token, per-head number computed from the layer's input, used by several rules.

Shape suffixes: B batch, H heads, T tokens, D model width.
"""

import torch
from torch import nn

from models.layers import Linear
from models.probes import full_precision


class HeadGate(nn.Module):
    """Returns W x + b in fp32, even under autocast, [B, H, T]. The init axis fills W; b starts at zero."""

    def __init__(self, width: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.linear = Linear(width, heads)
        self.bias = nn.Parameter(torch.zeros(heads)) if bias else None

    def forward(self, x_BTD: torch.Tensor | None) -> torch.Tensor:
        assert x_BTD is not None, "a gate reads the layer's input"
        with full_precision(x_BTD):
            logits_BTH = self.linear(x_BTD.float())
        return (logits_BTH if self.bias is None else logits_BTH + self.bias).mT
