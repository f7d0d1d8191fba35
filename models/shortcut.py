"""Augmented shortcut: a bottleneck beside attention, x + attention(h) + W_up gelu(W_down h), h attention's input.

Wang et al. 2023 (PanGu-pi, arXiv 2312.17276), with one shortcut in each block. The paper writes T(Z) of the
block's input; that it reads the input after the norm is our reading.

Shape suffixes: B batch, T tokens, D model width.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from models.layers import Drawn, Linear

if TYPE_CHECKING:
    from models.architecture import Architecture


class AugmentedShortcut(Drawn):
    def __init__(self, width: int, narrowing: int) -> None:
        super().__init__()
        self.down = Linear(width, max(1, width // narrowing))
        self.up = Linear(self.down.out_features, width)

    def forward(self, h_BTD: torch.Tensor) -> torch.Tensor:
        return self.up(F.gelu(self.down(h_BTD), approximate="tanh"))

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Starts at zero, so that training starts from the plain block; this is our reading."""
        self.up.weight.zero_()


def fits(narrowing: int, config: "Architecture") -> None:
    """Raises ValueError if the config can't have the shortcut."""
    what = f"augmented_shortcut={narrowing}"
    if config.dual_stream is not None:
        raise ValueError(
            f"{what} adds to one stream, but dual_stream={config.dual_stream} has two: use dual_stream=null or "
            f"augmented_shortcut=null"
        )
    for axis, choice, bad in (
        ("placement", config.placement, config.placement.sets_weights_each_step),
        ("reparametrization", config.reparametrization, config.reparametrization.divides),
    ):
        if bad:
            instead = "placement=pre" if axis == "placement" else "reparametrization=none"
            raise ValueError(
                f"{what} has a matrix that starts at zero, but {axis}={choice.name} may divide by its norm: use "
                f"{instead} or augmented_shortcut=null"
            )
