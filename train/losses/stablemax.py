"""Cross-entropy of StableMax probabilities. Shape suffixes: N tokens, V vocabulary."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.probes import Stats, full_precision
from train.losses.base import LOSS, LossConfig, Objective, Output, at_target
from train.losses.fused import cross_entropy_z


def s(x: torch.Tensor) -> torch.Tensor:
    """Returns x + 1 for x >= 0 and 1 / (1 - x) for x < 0. The slope at 0 is 1 from both sides."""
    # As relu(x) + 1 / (1 - min(x, 0)), which is faster than torch.where.
    return F.threshold(x, 0, 0).add_(x.clamp_max(0).neg_().add_(1).reciprocal_())


class _StableMax(torch.autograd.Function):
    """Computes -log(s(z_y) / Z) and log Z, Z = sum_v s(z_v), each [N]. The gradient of the first is
    s'(z) (1 / Z - onehot(target) / s(z_y)), of the second s'(z) / Z.

    s' is 1 where s >= 1 and s^2 elsewhere, so only s is saved for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor):
        s_NV = s(logits_NV)
        total_N, target_N = s_NV.sum(-1), at_target(s_NV, targets_N)
        ctx.save_for_backward(s_NV, targets_N, total_N, target_N)
        log_z_N = total_N.log()
        return log_z_N - target_N.log(), log_z_N

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor, grad_log_z_N: torch.Tensor):
        s_NV, targets_N, total_N, target_N = ctx.saved_tensors
        # s' / s as min(s, 1 / s), because s^2 could underflow.
        at_target_N = grad_N * torch.minimum(target_N, 1 / target_N)
        # In place, as s is not needed again. Autograd raises an error on a second backward pass.
        grad_NV = s_NV.clamp_max_(1).square_().mul_(((grad_N + grad_log_z_N) / total_N)[:, None])
        return grad_NV.scatter_add_(1, targets_N[:, None], -at_target_N[:, None]), None


def stablemax(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns -log(s(z_y) / Z) and log Z of each token, each [N], Z = sum_v s(z_v)."""
    return _StableMax.apply(logits_NV, targets_N)


class StableMaxObjective(Objective):
    def with_z_loss(
        self, output: Output, targets_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Stats]:
        with full_precision(output.logits_NV):
            loss_N, own_log_z_N = stablemax(output.logits_NV, targets_N)
            loss = loss_N.mean()
            if self.config.z_loss:
                loss = loss + self.config.z_loss * own_log_z_N.square().mean()
        _, cross_entropy_N, log_z_N, max_N = cross_entropy_z(output.logits_NV.detach(), targets_N, 0.0)
        return loss, cross_entropy_N, log_z_N, max_N, {}


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StableMax(LossConfig):
    """-log(s(z_y) / sum_v s(z_v)), s in place of exp.

    Prieto et al. 2025 (arXiv 2501.04697), against softmax collapse. The authors' code runs in fp64. The difference
    log sum_v s(z_v) - log s(z_y), used here, needs only fp32: s(z) neither over- nor underflows for |z| < 1e30. z_loss
    is of its own Z = sum_v s(z_v): log^2 sum_v exp(z_v) would grow as z^2, faster than this loss falls.
    """

    name: Literal["stablemax"] = "stablemax"

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return StableMaxObjective(self)
