"""Sub-LN: pre-norm with a second norm before each output projection. Wang et al. 2022 (Magneto), section 3.

Attention is W_out N(mix(N(x))), an MLP W_down N(phi(W_up N(x))). For a decoder of M blocks, the initial weights of
values, output projections and MLPs are scaled by gamma = sqrt(log 2M) (figure 2). The paper scales Xavier's weights,
which is `init=xavier`; other inits are scaled likewise.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.layers import Linear, Role
from models.norms import NormConfig
from models.placement.base import (
    PLACEMENT,
    NormedInput,
    Placement,
    PlacementConfig,
    Site,
    refuse_depth_scaling,
    scale_weights,
)
from models.placement.pre import Pre

if TYPE_CHECKING:
    from models.architecture import Architecture


def gamma(depth: int) -> float:
    return math.sqrt(math.log(2 * depth))


@PLACEMENT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SubLNConfig(PlacementConfig):
    """W_out N(mix(N(x))) and W_down N(phi(W_up N(x))): a second norm before each output projection.

    Initial weights are scaled by sqrt(log 2M). Wang et al. 2022 (Magneto), figure 2.
    """

    name: Literal["sub_ln"] = "sub_ln"
    wraps_projections = True
    sets_initial_scale = True
    scales_with_depth = True

    def build(self, norm: NormConfig, site: Site, scale: nn.Module | None = None) -> Placement:
        return Pre(norm, site.width, scale)

    def projection(self, role: Role, fan_in: int, fan_out: int, norm: NormConfig, head_dim: int) -> Linear:
        if role in ("out", "down"):
            return NormedInput(fan_in, fan_out, role, norm)
        return Linear(fan_in, fan_out, role)

    def rescale(self, blocks: Sequence[Any]) -> None:
        if blocks:
            scale_weights(blocks, gamma(len(blocks)))

    def fits(self, config: "Architecture") -> None:
        super().fits(config)
        refuse_depth_scaling(self.name, config.init)
