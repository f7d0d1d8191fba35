"""The layers that own matrices. What multiplies their output, and how the weight is made of the parameter, can be set.

Shape suffixes: ... any leading dimensions, I fan-in, O fan-out, N rows, D columns of an embedding.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Linear(nn.Linear):
    """multiplier W x without a bias, W = map(weight)."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__(fan_in, fan_out, bias=False)
        self.multiplier = 1.0
        """A constant of the parametrization."""
        self.map: nn.Module = nn.Identity()
        """A reparametrization: W as a function of the trained weight."""
        self.decays = True
        """Whether weight decay acts on the weight; False where a reparametrization takes its place."""

    def matrix(self) -> torch.Tensor:
        """W, [O, I]; the multiplier stays outside."""
        return self.map(self.weight)

    def forward(self, x_I: torch.Tensor) -> torch.Tensor:
        y_O = F.linear(x_I, self.matrix())
        return y_O if self.multiplier == 1.0 else self.multiplier * y_O


class Embedding(nn.Embedding):
    """multiplier times the rows of the weight."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__(count, width)
        self.multiplier = 1.0

    def scaled(self, rows_D: torch.Tensor) -> torch.Tensor:
        return rows_D if self.multiplier == 1.0 else self.multiplier * rows_D

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.scaled(super().forward(index))
