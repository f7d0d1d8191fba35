"""Norms at both the input and the output of a sublayer, x + N(F(N(x))): Peri-LN and Sandwich-LN."""

from typing import TYPE_CHECKING, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.norms import NormConfig
from models.placement.base import PLACEMENT, Placement, PlacementConfig, Site, Sublayer

if TYPE_CHECKING:
    from models.architecture import Architecture


class Peri(Placement):
    """x + N_out(F(N_in(x)))."""

    def __init__(self, norm: NormConfig, width: int, scale: nn.Module | None = None) -> None:
        super().__init__(scale)
        self.input = norm.build(width)
        self.output = norm.build(width)

    def forward(self, x_BTD: torch.Tensor, sublayer: Sublayer) -> torch.Tensor:
        return x_BTD + self.scale(self.output(sublayer(self.input(x_BTD))))


def relaxed(x_BTD: torch.Tensor) -> torch.Tensor:
    """Returns x / (max|x| / 8), without a gradient through the maximum, so that squares stay in fp16's range.

    CogView's code takes the maximum over the whole tensor, which lets later tokens affect earlier ones. Here it is
    taken per token. Zero tokens are left as they are, to avoid 0/0 and unbounded gradients.
    """
    x_BTD = x_BTD.float()
    peak_BT1 = x_BTD.detach().abs().amax(-1, keepdim=True)
    return x_BTD / torch.where(peak_BT1 > 0, peak_BT1 / 8, 1.0)


class Sandwich(Peri):
    """x + N_out(F(N_in(x))) with relaxed inputs of both norms.

    The division is part of CogView's LayerNorm. It affects a scale-invariant norm only through eps, so in fp32 this
    equals Peri-LN except for tokens close to zero.
    """

    def forward(self, x_BTD: torch.Tensor, sublayer: Sublayer) -> torch.Tensor:
        return x_BTD + self.scale(self.output(relaxed(sublayer(self.input(relaxed(x_BTD))))))


@PLACEMENT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PeriConfig(PlacementConfig):
    """x + N_out(F(N_in(x))), norms on both sides of a sublayer. Kim et al. 2025 (Peri-LN); Gemma 2.

    The paper's optional norm of the embedding is `embedding_norm=true`.
    """

    name: Literal["peri"] = "peri"
    adds = True

    def build(self, norm: NormConfig, site: Site, scale: nn.Module | None = None) -> Placement:
        return Peri(norm, site.width, scale)


@PLACEMENT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SandwichConfig(PlacementConfig):
    """x + N_out(F(N_in(x))) where each N first divides by max|x| / 8, against overflow in fp16.

    Ding et al. 2021 (CogView), section 2.4.
    """

    name: Literal["sandwich"] = "sandwich"
    adds = True

    def build(self, norm: NormConfig, site: Site, scale: nn.Module | None = None) -> Placement:
        return Sandwich(norm, site.width, scale)

    def fits(self, config: "Architecture") -> None:
        super().fits(config)
        if not config.norm.scale_invariant:
            raise ValueError(
                f"placement=sandwich rescales the inputs of its norms, which changes norm={config.norm.name}: "
                f"use placement=peri or norm=layernorm"
            )
