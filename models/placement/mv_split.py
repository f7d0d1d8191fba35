"""MV-Split residuals: a branch's mean over tokens and its remainder join the stream with separate gains.

    z = x + beta * (u - mean(u)) + alpha * (mean(u) - mean(x)),  u = F(x),  then N(z)

Lu 2026 ("Mean mode screaming", arXiv 2605.06169); erwold/mv-split, `dit.py`. The author's model is not causal and takes
the mean over all tokens of an image or a prompt. Here it is the running mean up to the current token, so that no token
sees the future; this is our reading. At the first token u equals its mean, so only alpha acts.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.norms import NormConfig
from models.placement.base import PLACEMENT, Placement, PlacementConfig, Site, Sublayer
from models.reductions import cumsum


def running_mean(x_BTD: torch.Tensor) -> torch.Tensor:
    """Returns, at each token t, the mean over tokens 0 to t."""
    count_T = torch.arange(1, x_BTD.shape[-2] + 1, device=x_BTD.device)
    return cumsum(x_BTD, -2) / count_T[:, None]


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

    Lu 2026 (arXiv 2605.06169) has means over all tokens; running means are our causal reading. The author's setting is
    `norm=rmsnorm norm.eps=1e-5 embedding_norm=true`: the stream is normalized before the first block and, as in
    post-norm, not again before the head. LayerScale, if used, scales u.
    """

    name: Literal["mv_split"] = "mv_split"
    final_norm = False
    alpha: float = 0.0
    """Initial gain per channel of (mean u - mean x), which moves the stream's mean to the branch's; erwold/mv-split."""
    beta: float = 0.03
    """Initial gain per channel of u - mean u; erwold/mv-split."""

    def build(self, norm: NormConfig, site: Site, scale: nn.Module | None = None) -> Placement:
        return MVSplit(norm, site.width, self.alpha, self.beta, scale)
