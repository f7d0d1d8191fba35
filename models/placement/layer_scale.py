"""Factors of a sublayer's output: the parametrization's constant, then LayerScale."""

import torch
from torch import nn


class BranchScale(nn.Module):
    """Multiplies by a constant of the parametrization."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, y_BTD: torch.Tensor) -> torch.Tensor:
        return y_BTD if self.factor == 1.0 else self.factor * y_BTD


class LayerScale(BranchScale):
    """Multiplies by a learned factor per channel, after the constant. Touvron et al. 2021 (CaiT), eq. 4."""

    def __init__(self, width: int, init: float, factor: float = 1.0) -> None:
        super().__init__(factor)
        self.weight = nn.Parameter(torch.full((width,), init))

    def forward(self, y_BTD: torch.Tensor) -> torch.Tensor:
        return self.weight * super().forward(y_BTD)


def branch_scale(width: int, layer_scale: float | None, factor: float) -> BranchScale | None:
    """Returns a branch's scale; `layer_scale` is LayerScale's initial value. None if nothing scales the branch."""
    if layer_scale is not None:
        return LayerScale(width, layer_scale, factor)
    return None if factor == 1.0 else BranchScale(factor)
