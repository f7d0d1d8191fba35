"""DeepNorm, N(alpha x + F(x)), with initial weights scaled by beta. Wang et al. 2022 (DeepNet), figure 2.

For a decoder of M blocks, alpha = (2M)^(1/4) and beta = (8M)^(-1/4). The paper scales Xavier's weights by beta, which
is `init=xavier`; other inits are scaled likewise.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.norms import NormConfig
from models.placement.base import (
    PLACEMENT,
    Placement,
    PlacementConfig,
    Site,
    Sublayer,
    refuse_depth_scaling,
    scale_weights,
)

if TYPE_CHECKING:
    from models.architecture import Architecture


def alpha(depth: int) -> float:
    return (2 * depth) ** 0.25


def beta(depth: int) -> float:
    return (8 * depth) ** -0.25


class DeepNorm(Placement):
    def __init__(self, norm: NormConfig, width: int, depth: int, scale: nn.Module | None = None) -> None:
        super().__init__(scale)
        self.stream = norm.build(width)
        self.alpha = alpha(depth)

    def forward(self, x_BTD: torch.Tensor, sublayer: Sublayer) -> torch.Tensor:
        return self.stream(self.alpha * x_BTD + self.scale(sublayer(x_BTD)))


@PLACEMENT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DeepNormConfig(PlacementConfig):
    """N(alpha x + F(x)) with initial weights scaled by beta, both by depth. Wang et al. 2022 (DeepNet), figure 2.

    A form of post-norm, so there is no norm before the head.
    """

    name: Literal["deepnorm"] = "deepnorm"
    sets_initial_scale = True
    final_norm = False  # as in torchscale, which has one only for pre-norm decoders
    scales_with_depth = True

    def build(self, norm: NormConfig, site: Site, scale: nn.Module | None = None) -> Placement:
        return DeepNorm(norm, site.width, site.depth, scale)

    def rescale(self, blocks: Sequence[Any]) -> None:
        if blocks:
            scale_weights(blocks, beta(len(blocks)))

    def fits(self, config: "Architecture") -> None:
        super().fits(config)
        refuse_depth_scaling(self.name, config.init)
