"""Cross-entropy of StableMax probabilities. Shape suffixes: N tokens, V vocabulary."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.probes import Stats
from train.losses.base import LOSS, LossConfig, Objective, Output, at_target


def s(x: torch.Tensor) -> torch.Tensor:
    """Returns x + 1 for x >= 0 and 1 / (1 - x) for x < 0. The slope at 0 is 1 from both sides."""
    # As relu(x) + 1 / (1 - min(x, 0)), which is faster than torch.where.
    return F.threshold(x, 0, 0).add_(x.clamp_max(0).neg_().add_(1).reciprocal_())


class _StableMax(torch.autograd.Function):
    """Computes -log(s(z_y) / sum_v s(z_v)), [N], with gradient s'(z) (1 / sum_v s(z_v) - onehot(target) / s(z_y)).

    s' is 1 where s >= 1 and s^2 elsewhere, so only s is saved for the backward pass.
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
        # s' / s as min(s, 1 / s), because s^2 could underflow.
        at_target_N = grad_N * torch.minimum(target_N, 1 / target_N)
        # In place, as s is not needed again. Autograd raises an error on a second backward pass.
        grad_NV = s_NV.clamp_max_(1).square_().mul_((grad_N / total_N)[:, None])
        return grad_NV.scatter_add_(1, targets_N[:, None], -at_target_N[:, None]), None


def stablemax(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Returns -log(s(z_y) / sum_v s(z_v)) of each token, [N]."""
    return _StableMax.apply(logits_NV, targets_N)


class StableMaxObjective(Objective):
    def main(self, output: Output, targets_N: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        return stablemax(output.logits_NV, targets_N).mean(), {}


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StableMax(LossConfig):
    """-log(s(z_y) / sum_v s(z_v)), s in place of exp.

    Prieto et al. 2025 (arXiv 2501.04697), against softmax collapse. The authors' code runs in fp64. The difference
    log sum_v s(z_v) - log s(z_y), used here, needs only fp32: s(z) neither over- nor underflows for |z| < 1e30.
    """

    name: Literal["stablemax"] = "stablemax"

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return StableMaxObjective(self)
