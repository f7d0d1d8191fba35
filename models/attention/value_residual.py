"""Value residual: each block attends to a mix of its own values and the first block's.

Zhou et al. 2024 ("Value residual learning", arXiv 2410.17897; Zcchill/Value-Residual-Learning).

Shape suffixes: B batch, H heads, T tokens, K head dimension.
"""

from typing import Literal

import torch
from torch import nn

ValueResidualName = Literal["identity", "learnable"]


class IdentityResidual(nn.Module):
    """(V_1 + V_l) / 2. Identity-ResFormer."""

    def forward(self, first_BHTK: torch.Tensor, own_BHTK: torch.Tensor) -> torch.Tensor:
        return 0.5 * (first_BHTK + own_BHTK)


class LearnableResidual(nn.Module):
    """weight_0 V_1 + weight_1 V_l with two learned numbers per block, initially 1/2. Learnable-ResFormer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, first_BHTK: torch.Tensor, own_BHTK: torch.Tensor) -> torch.Tensor:
        return self.weight[0] * first_BHTK + self.weight[1] * own_BHTK


def value_residual(name: ValueResidualName) -> nn.Module:
    return IdentityResidual() if name == "identity" else LearnableResidual()
