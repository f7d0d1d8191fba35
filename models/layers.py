"""The layers that own matrices. Other axes set their output multiplier and how W is computed from the parameter.

Shape suffixes: ... any leading dimensions, I fan-in, O fan-out, N rows, D columns of an embedding.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

Role = Literal["query", "key", "value", "out", "activated", "multiplied", "down", "router"]
"""What a matrix does in its sublayer. Token mixers: `query` and `key` make logits, `value` makes what is mixed, `out`
projects it back to the stream. MLPs: the output of `activated` enters the non-linearity and is multiplied by the output
of `multiplied` if there is one; `down` projects the result back to the stream. `router` makes logits of experts."""


class Linear(nn.Linear):
    """Computes multiplier W x without a bias, where W = map(weight)."""

    def __init__(self, fan_in: int, fan_out: int, role: Role | None = None, map: nn.Module | None = None) -> None:
        super().__init__(fan_in, fan_out, bias=False)
        self.role = role
        self.multiplier = 1.0
        """Constant factor set by the parametrization."""
        self.map: nn.Module = nn.Identity() if map is None else map
        """Computes W from the trained weight; set by a placement or a reparametrization."""
        self.decays = True
        """Whether weight decay acts on the weight; False if a reparametrization replaces it."""
        self.own_scale = False
        """Whether its owner draws the weight at a scale that initialization, parametrization and reparametrizations
        leave alone."""
        self.rows_follow_width = role != "router"
        """Whether the fan-out grows with the width; not so for a router's rows, one of each expert."""

    @property
    def writes_stream(self) -> bool:
        """Returns whether this is the last matrix of a sublayer, whose output is added to the residual stream."""
        return self.role in ("out", "down")

    @property
    def in_branch(self) -> bool:
        """Returns whether the sublayer's output is proportional to this matrix; not so for queries, keys and gates."""
        return self.role in ("value", "out", "activated", "multiplied", "down")

    def matrix(self) -> torch.Tensor:
        """Returns W, [O, I], without the multiplier."""
        return self.map(self.weight)

    def forward(self, x_I: torch.Tensor) -> torch.Tensor:
        y_O = F.linear(x_I, self.matrix())
        return y_O if self.multiplier == 1.0 else self.multiplier * y_O


Make = Callable[[Role, int, int], Linear]
"""Makes a matrix from role, fan-in and fan-out. A placement's version wraps some of them in norms."""


def plain(role: Role, fan_in: int, fan_out: int) -> Linear:
    """Returns a plain matrix, without norms."""
    return Linear(fan_in, fan_out, role)


class Drawn(nn.Module):
    """A module with parameters of its own that start at random and that the init axis does not fill."""

    def draw(self, generator: torch.Generator) -> None:
        raise NotImplementedError


def draw_parts(owner: nn.Module, generator: torch.Generator) -> None:
    """Draws the initial parameters of all `Drawn` modules inside a module."""
    for module in owner.modules():
        if isinstance(module, Drawn):
            module.draw(generator)


class Embedding(nn.Embedding):
    """Returns rows of the weight, times a multiplier."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__(count, width)
        self.multiplier = 1.0

    def scaled(self, rows_D: torch.Tensor) -> torch.Tensor:
        return rows_D if self.multiplier == 1.0 else self.multiplier * rows_D

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.scaled(super().forward(index))
