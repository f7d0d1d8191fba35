"""Gates computed from the layer's input, used by several rules.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

import torch
import torch.nn.functional as F
from torch import nn

from models.attention.mixing.base import LayerShape
from models.layers import Linear
from models.norms import RMSNorm
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


class NormAndGate(nn.Module):
    """Returns RMSNorm(o) * silu(W x): a norm per head, whose weights heads share, and a gate per feature."""

    def __init__(self, layer: LayerShape, gate: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = RMSNorm(layer.head_dim, eps)
        self.gate = Linear(layer.width, layer.heads * layer.head_dim) if gate else None

    def forward(self, mixed_BHTK: torch.Tensor, x_BTD: torch.Tensor | None) -> torch.Tensor:
        with full_precision(mixed_BHTK):
            normed_BHTK = self.norm(mixed_BHTK)
        if self.gate is None:
            return normed_BHTK.to(mixed_BHTK.dtype)
        assert x_BTD is not None, "the gate reads the layer's input"
        gate_BHTK = F.silu(self.gate(x_BTD).float()).unflatten(-1, (mixed_BHTK.shape[1], -1)).transpose(1, 2)
        return (normed_BHTK * gate_BHTK).to(mixed_BHTK.dtype)
