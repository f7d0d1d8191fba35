"""LayerScale: a learned factor a channel on what a sublayer adds to the stream. Touvron et al. 2021 (CaiT)."""

import torch
from torch import nn


class LayerScale(nn.Module):
    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), init))

    def forward(self, y_BTD: torch.Tensor) -> torch.Tensor:
        return self.weight * y_BTD
