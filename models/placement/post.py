"""Norms after the sublayer: of the residual stream (post) or of the sublayer's output (res_post)."""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.norms import NormConfig
from models.placement.base import PLACEMENT, Placement, PlacementConfig, Site, Sublayer


class Post(Placement):
    """N(x + F(x))."""

    def __init__(self, norm: NormConfig, width: int, scale: nn.Module | None = None) -> None:
        super().__init__(scale)
        self.stream = norm.build(width)

    def forward(self, x_BTD: torch.Tensor, sublayer: Sublayer) -> torch.Tensor:
        return self.stream(x_BTD + self.scale(sublayer(x_BTD)))


class ResPost(Placement):
    """x + N(F(x))."""

    def __init__(self, norm: NormConfig, width: int, scale: nn.Module | None = None) -> None:
        super().__init__(scale)
        self.output = norm.build(width)

    def forward(self, x_BTD: torch.Tensor, sublayer: Sublayer) -> torch.Tensor:
        return x_BTD + self.scale(self.output(sublayer(x_BTD)))


@PLACEMENT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PostConfig(PlacementConfig):
    """N(x + F(x)), the norm in the stream. Vaswani et al. 2017, section 3.1; GPT-1.

    The last block's own norm also serves as the norm before the head.
    """

    name: Literal["post"] = "post"
    final_norm = False

    def build(self, norm: NormConfig, site: Site, scale: nn.Module | None = None) -> Placement:
        return Post(norm, site.width, scale)


@PLACEMENT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ResPostConfig(PlacementConfig):
    """x + N(F(x)), the norm on the sublayer's output.

    Swin v2 (Liu et al. 2022, section 3.2, "residual post normalization"), without the extra norm of the stream in every
    sixth block of its two largest models (section 3.6); OLMo 2 (2024, section 2.1, "reordered norm").
    """

    name: Literal["res_post"] = "res_post"
    adds = True

    def build(self, norm: NormConfig, site: Site, scale: nn.Module | None = None) -> Placement:
        return ResPost(norm, site.width, scale)
