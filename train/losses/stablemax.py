"""Cross-entropy of StableMax probabilities. Shape suffixes: N tokens, V vocabulary."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.probes import Stats
from train.losses.base import LOSS, LossConfig, Objective, Output, at_target


def s(x: torch.Tensor) -> torch.Tensor:
    """x + 1 for x >= 0, 1 / (1 - x) below: grows linearly both ways, with slope 1 on either side of 0."""
    # As a sum, of which one part is constant on either side: torch.where alone takes longer.
    return F.threshold(x, 0, 0).add_(x.clamp_max(0).neg_().add_(1).reciprocal_())


class _StableMax(torch.autograd.Function):
    """-log(s(z_y) / sum_v s(z_v)), [N], and its gradient s'(z) (1 / sum_v s(z_v) - onehot(target) / s(z_y)).

    s' is 1 where s >= 1 and s^2 below, so that s is all that is kept.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor):
        s_NV = s(logits_NV)
        total_N, target_N = s_NV.sum(-1), at_target(s_NV, targets_N)
        ctx.save_for_backward(s_NV, targets_N, total_N, target_N)
        return total_N.log() - target_N.log()

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor):
        s_NV, targets_N, total_N, target_N = ctx.saved_tensors
        # s' / s, without a square that underflows.
        at_target_N = grad_N * torch.minimum(target_N, 1 / target_N)
        # In place: s has served. A second backward pass through it is an error that autograd reports.
        grad_NV = s_NV.clamp_max_(1).square_().mul_((grad_N / total_N)[:, None])
        return grad_NV.scatter_add_(1, targets_N[:, None], -at_target_N[:, None]), None


def stablemax(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    return _StableMax.apply(logits_NV, targets_N)


class StableMaxObjective(Objective):
    def main(self, output: Output, targets_N: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        return stablemax(output.logits_NV, targets_N).mean(), {}


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StableMax(LossConfig):
    """-log(s(z_y) / sum_v s(z_v)), s in place of exp.

    Prieto et al. 2025 (arXiv 2501.04697), against softmax collapse. Their code takes it in fp64; the logarithms are
    taken apart here, which needs no more than fp32: s(z) neither over- nor underflows for |z| < 1e30.
    """

    name: Literal["stablemax"] = "stablemax"

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return StableMaxObjective(self)
