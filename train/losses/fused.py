"""Cross-entropy with z-loss through one softmax. Shape suffixes: N tokens, V vocabulary."""

from typing import Any

import torch


def probabilities(
    logits_NV: torch.Tensor, targets_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Softmax [N, V]; cross-entropy, log Z and the largest logit, each [N].

    log Z is taken as max - log p_max, which never underflows since p_max >= 1/V.
    """
    p_NV = torch.softmax(logits_NV, -1)
    max_N, log_p_max_N = logits_NV.amax(-1), p_NV.amax(-1).log()
    # Not log Z - logit, which loses a small loss under large logits.
    cross_entropy_N = max_N - logits_NV.gather(1, targets_N[:, None])[:, 0] - log_p_max_N
    return p_NV, cross_entropy_N, max_N - log_p_max_N, max_N


class _CrossEntropyZ(torch.autograd.Function):
    """(w cross-entropy + c log^2 Z + b (z_k - mean_v z_v), cross-entropy, log Z, max), each [N], through one softmax.

    The gradient of the first is p (w + 2 c log Z) - w onehot(target) + b (onehot(k) - 1 / V); the others are statistics
    and pass no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_NV: torch.Tensor,
        targets_N: torch.Tensor,
        z_loss: float,
        weight: float,
        penalty: float,
        lowered_N: torch.Tensor,
    ):
        p_NV, cross_entropy_N, log_z_N, max_N = probabilities(logits_NV, targets_N)
        ctx.save_for_backward(p_NV, targets_N, log_z_N, lowered_N)
        ctx.z_loss, ctx.weight, ctx.penalty = z_loss, weight, penalty
        ctx.mark_non_differentiable(cross_entropy_N, log_z_N, max_N)
        loss_N = weight * cross_entropy_N + z_loss * log_z_N.square()
        if penalty:
            # As a mean of differences, in which a common shift cancels before it rounds.
            loss_N = loss_N + penalty * (logits_NV.gather(1, lowered_N[:, None]) - logits_NV).mean(-1)
        return loss_N, cross_entropy_N, log_z_N, max_N

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor, *_: Any):
        p_NV, targets_N, log_z_N, lowered_N = ctx.saved_tensors
        # In place: p has served. A second backward pass through it is an error that autograd reports.
        grad_NV = p_NV.mul_((grad_N * (ctx.weight + 2 * ctx.z_loss * log_z_N))[:, None])
        grad_NV.scatter_add_(1, targets_N[:, None], -ctx.weight * grad_N[:, None])
        if ctx.penalty:
            share_N1 = ctx.penalty * grad_N[:, None]
            grad_NV.sub_(share_N1 / grad_NV.shape[1]).scatter_add_(1, lowered_N[:, None], share_N1)
        return grad_NV, None, None, None, None, None


def cross_entropy_z(
    logits_NV: torch.Tensor,
    targets_N: torch.Tensor,
    z_loss: float,
    weight: float = 1.0,
    penalty: float = 0.0,
    lowered_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per-token loss with z-loss, plain cross-entropy, log Z and the largest logit, each [N]; fp32 logits.

    `weight` is that of the cross-entropy in the first: 0 leaves z-loss alone, for main losses of another kind.
    `penalty` is that of z_k - mean_v z_v, with k in `lowered_N`.
    z-loss: c log^2 Z with Z = sum_v exp(logit_v). PaLM (Chowdhery et al. 2022), section 5; Wortsman et al. 2023, 3.1.2.
    """
    lowered_N = targets_N if lowered_N is None else lowered_N
    return _CrossEntropyZ.apply(logits_NV, targets_N, z_loss, weight, penalty, lowered_N)
