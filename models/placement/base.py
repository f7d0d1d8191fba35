"""Placements, the `placement` axis: where norms stand around a sublayer and how its output joins the residual stream.

A placement is one small class whose `forward` is its equation, and a frozen dataclass that names it. Every file in this
folder is imported, so that a placement is registered by being there. In equations x is the residual stream, F a
sublayer (attention or MLP), N a norm of the `norm` axis; each N has parameters of its own. `self.scale` is the factor
of the parametrization and LayerScale.

Shape suffixes: B batch, T tokens, D model width.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.init import InitConfig
from models.layers import Linear
from models.norms import NormConfig

Sublayer = Callable[[torch.Tensor], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Site:
    """The sublayer that a placement surrounds; blocks are counted from 0."""

    sublayer: Literal["attention", "mlp"]
    block: int
    depth: int
    width: int


class Placement(nn.Module):
    """The norms around one sublayer, and the factors of its branch where there are any.

    They stand last in the branch, behind an output norm: in front of it the norm would take them out again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale: nn.Module = nn.Identity()

    def forward(self, x_BTD: torch.Tensor, sublayer: Sublayer) -> torch.Tensor:
        """The residual stream after the sublayer, fp32."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PlacementConfig(Choice):
    name: str
    final_norm = True  # whether the published form has a norm before the head
    scales_with_depth = False  # whether it has factors of the number of blocks

    def build(self, norm: NormConfig, site: Site) -> Placement:
        raise NotImplementedError

    def insert(self, attention: Any, mlp: nn.Module, norm: NormConfig) -> None:
        """Puts the norms in place that stand inside a block's sublayers."""

    def complete(self, model: Any) -> None:
        """Puts in place what the placement has outside of the blocks."""

    def attention_scale(self, head_dim: int, scale: float) -> float:
        """What multiplies q k^T, for which the parametrization has `scale`."""
        return scale

    def rescale(self, blocks: Sequence[Any]) -> None:
        """Changes the initial weights where the placement is published with an initialization of its own."""

    def constrain(self, model: Any) -> None:
        """Brings the weights of the model back to where the placement keeps them: at the start, and after each step."""

    def has(self, method: str) -> bool:
        """Whether the placement does something of its own in `rescale`, `constrain` or another method."""
        return getattr(type(self), method) is not getattr(PlacementConfig, method)

    def fits(self, config: Any) -> None:
        if config.norm.name == "none":
            raise ValueError(
                f"placement={self.name} has no norm to place with norm=none: use placement=pre or norm=layernorm"
            )


PLACEMENT: Axis[PlacementConfig] = Axis("placement")


class NormedInput(Linear):
    """W N(x): the projection with a norm before it, under the projection's own name."""

    def __init__(self, projection: Linear, norm: NormConfig) -> None:
        super().__init__(projection.in_features, projection.out_features)
        self.norm = norm.build(projection.in_features)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(x_BTD))


class NormedHeads(Linear):
    """N(W x) for each head on its own, the parameters of N shared across heads, as those of qk_norm are."""

    def __init__(self, projection: Linear, norm: NormConfig, head_dim: int) -> None:
        super().__init__(projection.in_features, projection.out_features)
        self.norm = norm.build(head_dim)
        self.head_dim = head_dim

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        y_BTD = super().forward(x_BTD)
        return self.norm(y_BTD.unflatten(-1, (-1, self.head_dim))).flatten(-2).to(y_BTD.dtype)


@torch.no_grad()
def scale_weights(blocks: Sequence[Any], gain: float) -> None:
    """Multiplies the value and output projections and the matrices of the MLP, but neither queries nor keys.

    These are the tensors, and this is the way, of DeepNorm and Magneto in torchscale (`architecture/decoder.py`).
    """
    for block in blocks:
        # A norm inside may have matrices of its own: they are none of the MLP's.
        mlp = [m for name, m in block.mlp.named_modules() if isinstance(m, Linear) and "norm" not in name.split(".")]
        for linear in (block.attention.value, block.attention.out, *mlp):
            linear.weight.mul_(gain)


def refuse_depth_scaling(placement: str, init: InitConfig) -> None:
    if init.scales_with_depth:
        raise ValueError(
            f"placement={placement} scales the initial weights with depth, and so does init={init.name}: "
            f"use init=xavier or placement=pre"
        )
