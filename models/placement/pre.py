"""Pre-norm: a norm at the input of all sublayers, or of the MLPs only."""

from typing import TYPE_CHECKING, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.norms import NormConfig
from models.placement.base import PLACEMENT, Placement, PlacementConfig, Site, Sublayer

if TYPE_CHECKING:
    from models.architecture import Architecture


class Plain(Placement):
    """x + F(x)."""

    def forward(self, x_BTD: torch.Tensor, sublayer: Sublayer) -> torch.Tensor:
        return x_BTD + self.scale(sublayer(x_BTD))


class Pre(Placement):
    def __init__(self, norm: NormConfig, width: int, scale: nn.Module | None = None) -> None:
        super().__init__(scale)
        self.input = norm.build(width)

    def forward(self, x_BTD: torch.Tensor, sublayer: Sublayer) -> torch.Tensor:
        return x_BTD + self.scale(sublayer(self.input(x_BTD)))


@PLACEMENT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PreConfig(PlacementConfig):
    """x + F(N(x)), and a norm before the head. Xiong et al. 2020, table 1; GPT-2; Wortsman et al. 2023."""

    name: Literal["pre"] = "pre"
    adds = True

    def build(self, norm: NormConfig, site: Site, scale: nn.Module | None = None) -> Placement:
        return Pre(norm, site.width, scale)

    def fits(self, config: "Architecture") -> None:
        """Accepts norm=none too: x + F(x)."""


@PLACEMENT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PreMLPConfig(PlacementConfig):
    """x + attention(x), x + mlp(N(x)), and a norm before the head. Rybakov et al. 2024 (arXiv 2410.16682).

    With `qk_norm=qkv` this is their QKV_norm, which normalizes queries, keys and values instead of attention's input.
    """

    name: Literal["pre_mlp"] = "pre_mlp"
    adds = True

    def build(self, norm: NormConfig, site: Site, scale: nn.Module | None = None) -> Placement:
        return Plain(scale) if site.sublayer == "attention" else Pre(norm, site.width, scale)
