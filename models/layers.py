"""The layers that own matrices. What multiplies their output, and how the weight is made of the parameter, can be set.

Shape suffixes: ... any leading dimensions, I fan-in, O fan-out, N rows, D columns of an embedding.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

Role = Literal["query", "key", "value", "out", "activated", "multiplied", "down"]
"""What a matrix does in its sublayer. Of a token mixer: `query` and `key` make logits, `value` makes what is mixed,
`out` takes it back to the stream. Of an MLP: the output of `activated` enters the non-linearity, that of `multiplied`
is multiplied with the result, `down` takes it back to the stream."""


class Linear(nn.Linear):
    """multiplier W x without a bias, W = map(weight)."""

    def __init__(self, fan_in: int, fan_out: int, role: Role | None = None, map: nn.Module | None = None) -> None:
        super().__init__(fan_in, fan_out, bias=False)
        self.role = role
        self.multiplier = 1.0
        """A constant of the parametrization."""
        self.map: nn.Module = nn.Identity() if map is None else map
        """W as a function of the trained weight: a placement's or a reparametrization's."""
        self.decays = True
        """Whether weight decay acts on the weight; False where a reparametrization takes its place."""

    @property
    def writes_stream(self) -> bool:
        """Whether it is the last matrix of a sublayer, whose output joins the residual stream."""
        return self.role in ("out", "down")

    @property
    def in_branch(self) -> bool:
        """Whether what a sublayer adds is in proportion to it. Queries and keys make weights, gates make shares."""
        return self.role in ("value", "out", "activated", "multiplied", "down")

    def matrix(self) -> torch.Tensor:
        """W, [O, I]; the multiplier stays outside."""
        return self.map(self.weight)

    def forward(self, x_I: torch.Tensor) -> torch.Tensor:
        y_O = F.linear(x_I, self.matrix())
        return y_O if self.multiplier == 1.0 else self.multiplier * y_O


Make = Callable[[Role, int, int], Linear]
"""Makes a matrix of this role, fan-in and fan-out. A placement's puts its norms around some of them."""


def plain(role: Role, fan_in: int, fan_out: int) -> Linear:
    """The matrix alone."""
    return Linear(fan_in, fan_out, role)


class Embedding(nn.Embedding):
    """multiplier times the rows of the weight."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__(count, width)
        self.multiplier = 1.0

    def scaled(self, rows_D: torch.Tensor) -> torch.Tensor:
        return rows_D if self.multiplier == 1.0 else self.multiplier * rows_D

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.scaled(super().forward(index))
