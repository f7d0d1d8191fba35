"""ESLM: cross-entropy of the riskiest tokens only. Shape suffixes: N tokens, V vocabulary."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.probes import Stats
from train.losses.base import LOSS, LossConfig, Objective, Output
from train.losses.fused import cross_entropy_z


@torch.no_grad()
def risky(score_N: torch.Tensor, alpha: float) -> torch.Tensor:
    """Returns a mask of the tokens whose score is at least the alpha-quantile (linear interpolation), bool [N]."""
    return score_N >= torch.quantile(score_N, alpha)


class ESLMObjective(Objective):
    config: "ESLM"

    def main(self, output: Output, targets_N: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        loss_N, cross_entropy_N, *_ = cross_entropy_z(output.logits_NV, targets_N, 0.0)
        if self.config.score == "loss":
            score_N = cross_entropy_N
        else:
            score_N = torch.special.entr(output.logits_NV.detach().softmax(-1)).sum(-1)
        kept_N = risky(score_N, self.config.alpha)
        # A NaN score makes the quantile NaN, so no token is kept and 0/0 passes the NaN on.
        return loss_N.where(kept_N, 0.0).sum() / kept_N.sum(), {"output/kept": kept_N.float().mean()}


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ESLM(LossConfig):
    """Mean cross-entropy over the tokens with score S >= the alpha-quantile of S; a share alpha is dropped.

    Bal, Cevher & Muehlebach 2025 (arXiv 2505.19893). S is the loss of a token (VaR-CE; the objective is then CVaR_alpha
    of the loss) or the entropy of its prediction (VaR-entropy). The quantile is taken over the micro-batch of one rank,
    so `accumulate` and `devices` change which tokens are kept. The auxiliary terms, including z-loss, use all tokens.
    alpha is constant; Ada-ESLM, which adapts it, is not implemented.
    """

    name: Literal["eslm"] = "eslm"
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of tokens to drop; 0 is plain cross-entropy. The default is not confirmed to be the paper's: tune it."""
    score: Literal["loss", "entropy"] = "loss"
    """Score S that decides which tokens to keep: the token's loss or the entropy of its prediction."""

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return ESLMObjective(self)
