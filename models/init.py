"""Initialization, the `init` axis."""

import math
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis

# Standard deviation of a unit normal cut off at +-2. Flax's variance_scaling divides by it: the std is then as named.
TRUNCATED_STD = 0.87962566103423978


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class InitConfig:
    name: str
    scales_with_depth: ClassVar[bool] = False  # whether a weight's std depends on the block or the number of blocks

    def apply(self, model: nn.Module, generator: torch.Generator) -> None:
        """Fills every parameter in place; norms keep their ones, other vectors their own start."""
        raise NotImplementedError


INIT: Axis[InitConfig] = Axis("init")


@INIT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class PaperInit(InitConfig):
    """Embeddings normal with std 1/sqrt(width), all matrices truncated normal with std 1/sqrt(fan_in).

    Wortsman et al. 2023, section 2.1: the defaults of Flax's Embed and of its LeCun-normal kernels.
    """

    name: Literal["paper"] = "paper"

    @torch.no_grad()
    def apply(self, model: nn.Module, generator: torch.Generator) -> None:
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(0, 1 / math.sqrt(module.embedding_dim), generator=generator)
            elif isinstance(module, nn.Linear):
                std = 1 / math.sqrt(module.in_features) / TRUNCATED_STD
                nn.init.trunc_normal_(module.weight, 0, std, -2 * std, 2 * std, generator=generator)
