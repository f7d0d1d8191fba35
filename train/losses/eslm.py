"""ESLM: cross-entropy of the riskiest tokens alone. Shape suffixes: N tokens, V vocabulary."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.probes import Stats
from train.losses.base import LOSS, LossConfig, Objective, Output
from train.losses.fused import cross_entropy_z


@torch.no_grad()
def kept(score_N: torch.Tensor, alpha: float) -> torch.Tensor:
    """Tokens whose score is not below the empirical alpha-quantile (interpolated linearly), bool [N]."""
    return score_N >= torch.quantile(score_N, alpha)


class ESLMObjective(Objective):
    config: "ESLM"

    def main(self, output: Output, targets_N: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        loss_N, cross_entropy_N, *_ = cross_entropy_z(output.logits_NV, targets_N, 0.0)
        if self.config.score == "loss":
            score_N = cross_entropy_N
        else:
            score_N = torch.special.entr(output.logits_NV.detach().softmax(-1)).sum(-1)
        kept_N = kept(score_N, self.config.alpha)
        # A NaN among the scores keeps nothing: 0/0 is the NaN that tells of it.
        return loss_N.where(kept_N, 0.0).sum() / kept_N.sum(), {"output/kept": kept_N.float().mean()}


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ESLM(LossConfig):
    """Mean cross-entropy over the tokens with score S >= the alpha-quantile of S; a share alpha is dropped.

    Bal, Cevher & Muehlebach 2025 (arXiv 2505.19893), VaR-CE (S the token's loss; then CVaR_alpha of the loss) and
    VaR-entropy (S the entropy of the prediction). The quantile is over the tokens of a micro-batch on one rank, so
    that `accumulate` and `devices` change which tokens are kept. Other terms, z-loss too, are over all tokens. alpha is
    constant: Ada-ESLM, which adapts it, is not built.
    """

    name: Literal["eslm"] = "eslm"
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of tokens that is dropped; 0 is cross-entropy. Set it: the paper's default could not be confirmed."""
    score: Literal["loss", "entropy"] = "loss"
    """What makes a token risky: its loss or the entropy of its prediction."""

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return ESLMObjective(self)
