"""HybridNorm: norms of q, k and v inside attention, post-norm around the MLP. Zhuo et al. 2025 (BryceZhuo/HybridNorm).

    y = x + attention(x), with N(q), N(k), N(v) head by head and no norm of x
    z = N(y) + mlp(N(y)), one N

The `qk_norm` axis normalizes q and k, the `norm` axis v. The paper uses `qk_norm=rmsnorm norm=rmsnorm` and an initial
std of 1/sqrt(2.5 D), which belongs to the `init` axis (`init=normal`) and is not set here.
"""

from typing import TYPE_CHECKING, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.layers import Linear, Role
from models.norms import NormConfig
from models.placement.base import PLACEMENT, NormedHeads, Placement, PlacementConfig, Site, Sublayer
from models.placement.pre import Plain, Pre

if TYPE_CHECKING:
    from models.architecture import Architecture


class NormedStream(Placement):
    """N(x) + F(N(x)) with a single N, a post-norm of the preceding sublayer."""

    def __init__(self, norm: NormConfig, width: int, scale: nn.Module | None = None) -> None:
        super().__init__(scale)
        self.stream = norm.build(width)

    def forward(self, x_BTD: torch.Tensor, sublayer: Sublayer) -> torch.Tensor:
        x_BTD = self.stream(x_BTD)
        return x_BTD + self.scale(sublayer(x_BTD))


@PLACEMENT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class HybridNormConfig(PlacementConfig):
    """x + attention(x) with N(q), N(k), N(v) for each head, then N(y) + mlp(N(y)). Zhuo et al. 2025 (HybridNorm)."""

    name: Literal["hybridnorm"] = "hybridnorm"
    wraps_projections = True
    first_block: Literal["hybrid", "pre"] = "hybrid"
    """Form of block 0. hybrid: like all others. pre: pre-norm around attention and MLP, the paper's HybridNorm*."""

    def build(self, norm: NormConfig, site: Site, scale: nn.Module | None = None) -> Placement:
        if site.block == 0 and self.first_block == "pre":
            return Pre(norm, site.width, scale)
        return Plain(scale) if site.sublayer == "attention" else NormedStream(norm, site.width, scale)

    def projection(self, role: Role, fan_in: int, fan_out: int, norm: NormConfig, head_dim: int) -> Linear:
        if role == "value":
            return NormedHeads(fan_in, fan_out, role, norm, head_dim)
        return Linear(fan_in, fan_out, role)

    def fits(self, config: "Architecture") -> None:
        super().fits(config)
        if not config.qk_norm.normalizes:
            raise ValueError(
                "placement=hybridnorm normalizes q, k and v, but qk_norm=none leaves q and k as they are: "
                "use qk_norm=rmsnorm or placement=res_post"
            )
        if config.qk_norm.acts_on_values:
            raise ValueError(
                f"placement=hybridnorm already normalizes values, and so does qk_norm={config.qk_norm.name}: "
                f"use qk_norm=layernorm or placement=pre"
            )
