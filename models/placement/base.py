"""Placements, the `placement` axis: where norms stand around a sublayer and how its output joins the residual stream.

A placement is a small class whose `forward` is its equation, and a frozen dataclass that registers it. Every file in
this folder is imported, so adding one registers its placement. In equations, x is the residual stream, F a sublayer
(attention or MLP) and N a norm of the `norm` axis, with its own parameters for each N. `self.scale` applies the factors
of the parametrization and LayerScale.

Shape suffixes: B batch, T tokens, D model width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.init import InitConfig
from models.layers import Linear, Role
from models.norms import NormConfig

if TYPE_CHECKING:
    from models.architecture import Architecture

Sublayer = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Site:
    """The sublayer that a placement wraps; blocks are counted from 0."""

    sublayer: Literal["attention", "mlp"]
    block: int
    depth: int
    width: int


class Placement(nn.Module):
    """Wraps one sublayer in norms and scales its branch.

    The scale comes last in the branch, after any output norm, because a norm would cancel a scale before it.
    """

    def __init__(self, scale: nn.Module | None = None) -> None:
        super().__init__()
        self.scale: nn.Module = nn.Identity() if scale is None else scale

    def forward(self, x_BTD: torch.Tensor, sublayer: Sublayer) -> torch.Tensor:
        """Returns the residual stream after the sublayer, fp32."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PlacementConfig(Choice):
    name: str
    final_norm = True  # whether the published form has a norm before the head
    scales_with_depth = False  # whether it has factors that depend on the number of blocks
    adds = False  # whether sublayers add to an unnormalized stream, with no norm inside attention
    wraps_projections = False  # whether it puts norms or scales inside sublayers: `projection` and `after_positions`
    sets_initial_scale = False  # whether it sets the scale of the initial weights: `rescale`
    sets_weights_each_step = False  # whether it constrains weights during training: `constrain`

    def build(self, norm: NormConfig, site: Site, scale: nn.Module | None = None) -> Placement:
        """Returns the wrapper of a sublayer; `scale` multiplies its branch."""
        raise NotImplementedError

    def projection(self, role: Role, fan_in: int, fan_out: int, norm: NormConfig, head_dim: int) -> Linear:
        """Returns a matrix of a sublayer, with the placement's norm before or after it, if any."""
        return Linear(fan_in, fan_out, role)

    def after_positions(self, width: int, heads: int) -> nn.Module | None:
        """Returns a transform of queries and keys to apply after the positions, or None."""
        return None

    def head_map(self, width: int, vocab_size: int) -> nn.Module | None:
        """Returns a module that computes the head's matrix from its trained weight, or None if they are the same."""
        return None

    def attention_scale(self, head_dim: int, scale: float) -> float:
        """Returns the factor of q k^T, given the parametrization's."""
        return scale

    def rescale(self, blocks: Sequence[Any]) -> None:
        """Changes the initial weights, for placements published with their own initialization."""

    def constrain(self, model: Any) -> None:
        """Projects the weights back onto the placement's constraint, at the start and after each step."""

    def fits(self, config: "Architecture") -> None:
        if not config.norm.normalizes:
            raise ValueError(f"placement={self.name} needs a norm, but norm=none: use placement=pre or norm=layernorm")


PLACEMENT: Axis[PlacementConfig] = Axis("placement")


class NormedInput(Linear):
    """Computes W N(x)."""

    def __init__(self, fan_in: int, fan_out: int, role: Role, norm: NormConfig) -> None:
        super().__init__(fan_in, fan_out, role)
        self.norm = norm.build(fan_in)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(x_BTD))


class NormedHeads(Linear):
    """Computes N(W x) head by head; heads share the parameters of N, as in qk_norm."""

    def __init__(self, fan_in: int, fan_out: int, role: Role, norm: NormConfig, head_dim: int) -> None:
        super().__init__(fan_in, fan_out, role)
        self.norm = norm.build(head_dim)
        self.head_dim = head_dim

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        y_BTD = super().forward(x_BTD)
        return self.norm(y_BTD.unflatten(-1, (-1, self.head_dim))).flatten(-2).to(y_BTD.dtype)


@torch.no_grad()
def scale_weights(blocks: Sequence[Any], gain: float) -> None:
    """Multiplies values, output projections and MLP matrices by the gain, but not queries and keys.

    DeepNorm and Magneto scale these matrices in torchscale (`architecture/decoder.py`).
    """
    for block in blocks:
        for module in block.modules():
            if isinstance(module, Linear) and module.in_branch:
                module.weight.mul_(gain)


def refuse_depth_scaling(placement: str, init: InitConfig) -> None:
    if init.scales_with_depth:
        raise ValueError(
            f"placement={placement} scales the initial weights with depth, and so does init={init.name}: "
            f"use init=xavier or placement=pre"
        )
