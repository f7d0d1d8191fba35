"""Placements, the `placement` axis: where norms stand around a sublayer and how its output joins the residual stream.

A placement is one small class whose `forward` is its equation, and a frozen dataclass that names it. Every file in this
folder is imported, so that a placement is registered by being there. In equations x is the residual stream, F a
sublayer (attention or MLP), N a norm of the `norm` axis; each N has parameters of its own. `self.scale` is the factor
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
    """The sublayer that a placement surrounds; blocks are counted from 0."""

    sublayer: Literal["attention", "mlp"]
    block: int
    depth: int
    width: int


class Placement(nn.Module):
    """The norms around one sublayer, and the factors of its branch where there are any.

    They stand last in the branch, behind an output norm: in front of it the norm would take them out again.
    """

    def __init__(self, scale: nn.Module | None = None) -> None:
        super().__init__()
        self.scale: nn.Module = nn.Identity() if scale is None else scale

    def forward(self, x_BTD: torch.Tensor, sublayer: Sublayer) -> torch.Tensor:
        """The residual stream after the sublayer, fp32."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PlacementConfig(Choice):
    name: str
    final_norm = True  # whether the published form has a norm before the head
    scales_with_depth = False  # whether it has factors of the number of blocks
    adds = False  # whether each sublayer adds to a stream that isn't normalized itself, with no norm inside attention
    wraps_projections = False  # whether it has norms or scales inside of sublayers: `projection` and `after_positions`
    sets_initial_scale = False  # whether the scale of the initial weights is its own: `rescale`
    sets_weights_each_step = False  # whether it keeps weights in bounds during training: `constrain`

    def build(self, norm: NormConfig, site: Site, scale: nn.Module | None = None) -> Placement:
        """What stands around a sublayer, whose branch is multiplied by `scale`."""
        raise NotImplementedError

    def projection(self, role: Role, fan_in: int, fan_out: int, norm: NormConfig, head_dim: int) -> Linear:
        """A matrix inside of a sublayer, with the norm that the placement has in front of it or after it."""
        return Linear(fan_in, fan_out, role)

    def after_positions(self, width: int, heads: int) -> nn.Module | None:
        """What acts on queries and keys once positions have turned them."""
        return None

    def head_map(self, width: int, vocab_size: int) -> nn.Module | None:
        """The matrix of the head as a function of its trained weight, where that isn't the weight itself."""
        return None

    def attention_scale(self, head_dim: int, scale: float) -> float:
        """What multiplies q k^T, for which the parametrization has `scale`."""
        return scale

    def rescale(self, blocks: Sequence[Any]) -> None:
        """Changes the initial weights where the placement is published with an initialization of its own."""

    def constrain(self, model: Any) -> None:
        """Brings the weights of the model back to where the placement keeps them: at the start, and after each step."""

    def fits(self, config: "Architecture") -> None:
        if not config.norm.normalizes:
            raise ValueError(
                f"placement={self.name} has no norm to place with norm=none: use placement=pre or norm=layernorm"
            )


PLACEMENT: Axis[PlacementConfig] = Axis("placement")


class NormedInput(Linear):
    """W N(x)."""

    def __init__(self, fan_in: int, fan_out: int, role: Role, norm: NormConfig) -> None:
        super().__init__(fan_in, fan_out, role)
        self.norm = norm.build(fan_in)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(x_BTD))


class NormedHeads(Linear):
    """N(W x) for each head on its own, the parameters of N shared across heads, as those of qk_norm are."""

    def __init__(self, fan_in: int, fan_out: int, role: Role, norm: NormConfig, head_dim: int) -> None:
        super().__init__(fan_in, fan_out, role)
        self.norm = norm.build(head_dim)
        self.head_dim = head_dim

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        y_BTD = super().forward(x_BTD)
        return self.norm(y_BTD.unflatten(-1, (-1, self.head_dim))).flatten(-2).to(y_BTD.dtype)


@torch.no_grad()
def scale_weights(blocks: Sequence[Any], gain: float) -> None:
    """Multiplies the matrices of the branches: values, output projections and MLPs, but neither queries nor keys.

    These are the tensors, and this is the way, of DeepNorm and Magneto in torchscale (`architecture/decoder.py`).
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
