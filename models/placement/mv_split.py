"""MV-Split residuals: the mean over tokens and the rest of a branch join the stream with gains of their own.

    z = x + beta * (u - mean(u)) + alpha * (mean(u) - mean(x)),  u = F(x),  then N(z)

Lu 2026 ("Mean mode screaming", arXiv 2605.06169); erwold/mv-split, `dit.py`. The mean there is over all tokens of an
image or a prompt, in a model that is not causal. Here, and this is our reading and not the author's, it is the running
mean over the tokens up to the present one, so that no token sees the future. At the first token u is its own mean: only
alpha acts on it.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.norms import NormConfig
from models.placement.base import PLACEMENT, Placement, PlacementConfig, Site, Sublayer


def running_mean(x_BTD: torch.Tensor) -> torch.Tensor:
    """Of tokens 0 to t, at each t."""
    count_T = torch.arange(1, x_BTD.shape[-2] + 1, device=x_BTD.device)
    return x_BTD.cumsum(-2) / count_T[:, None]


class MVSplit(Placement):
    def __init__(self, norm: NormConfig, width: int, alpha: float, beta: float, scale: nn.Module | None = None) -> None:
        super().__init__(scale)
        self.stream = norm.build(width)
        self.alpha = nn.Parameter(torch.full((width,), alpha))
        self.beta = nn.Parameter(torch.full((width,), beta))

    def forward(self, x_BTD: torch.Tensor, sublayer: Sublayer) -> torch.Tensor:
        x_BTD = x_BTD.float()
        u_BTD = self.scale(sublayer(x_BTD)).float()
        mean_BTD = running_mean(u_BTD)
        centred_BTD, moved_BTD = u_BTD - mean_BTD, mean_BTD - running_mean(x_BTD)
        return self.stream(x_BTD + self.beta * centred_BTD + self.alpha * moved_BTD)


@PLACEMENT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MVSplitConfig(PlacementConfig):
    """N(x + beta (u - mean u) + alpha (mean u - mean x)), u = F(x), with running means over tokens.

    Lu 2026 (arXiv 2605.06169) for means over all tokens; running means are our causal reading of it. The author's
    setting is `norm=rmsnorm norm.eps=1e-5 embedding_norm=true`: the stream is normed before the first block and, as in
    post-norm, not again before the head. LayerScale, where there is one, scales u.
    """

    name: Literal["mv_split"] = "mv_split"
    final_norm = False
    alpha: float = 0.0
    """Initial gain a channel of what moves the mean of the stream towards that of the branch; erwold/mv-split."""
    beta: float = 0.03
    """Initial gain a channel of what differs from the mean in the branch; erwold/mv-split."""

    def build(self, norm: NormConfig, site: Site, scale: nn.Module | None = None) -> Placement:
        return MVSplit(norm, site.width, self.alpha, self.beta, scale)
