"""Cross-entropy and z-loss, computed with a single softmax. Shape suffixes: N tokens, V vocabulary."""

from typing import Any

import torch


def probabilities(
    logits_NV: torch.Tensor, targets_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns softmax probabilities, [N, V], and cross-entropy, log Z and the largest logit, each [N].

    log Z is computed as max - log p_max, which can't underflow because p_max >= 1/V.
    """
    p_NV = torch.softmax(logits_NV, -1)
    max_N, log_p_max_N = logits_NV.amax(-1), p_NV.amax(-1).log()
    # In this order. log Z - logit would round a small loss to 0 when the logits are large.
    cross_entropy_N = max_N - logits_NV.gather(1, targets_N[:, None])[:, 0] - log_p_max_N
    return p_NV, cross_entropy_N, max_N - log_p_max_N, max_N


class _CrossEntropyZ(torch.autograd.Function):
    """Computes (w cross-entropy + c log^2 Z + b (z_k - mean_v z_v), cross-entropy, log Z, max z), each [N].

    The gradient of the first is p (w + 2 c log Z) - w onehot(target) + b (onehot(k) - 1 / V). The others are
    statistics without gradient. So are the probabilities, the last output, which the backward pass overwrites.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        logits_NV: torch.Tensor,
        targets_N: torch.Tensor,
        z_loss: float,
        weight: float,
        penalty: float,
        penalized_N: torch.Tensor,
    ):
        p_NV, cross_entropy_N, log_z_N, max_N = probabilities(logits_NV, targets_N)
        loss_N = weight * cross_entropy_N + z_loss * log_z_N.square()
        if penalty:
            # The mean of differences, not the difference of means: a shift common to all logits cancels exactly.
            loss_N = loss_N + penalty * (logits_NV.gather(1, penalized_N[:, None]) - logits_NV).mean(-1)
        return loss_N, cross_entropy_N, log_z_N, max_N, p_NV

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        _, targets_N, ctx.z_loss, ctx.weight, ctx.penalty, penalized_N = inputs
        _, cross_entropy_N, log_z_N, max_N, p_NV = output
        ctx.save_for_backward(p_NV, targets_N, log_z_N, penalized_N)
        ctx.mark_non_differentiable(cross_entropy_N, log_z_N, max_N, p_NV)
        ctx.set_materialize_grads(False)  # or zeros of the size of p would be made

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor, *_: Any):
        p_NV, targets_N, log_z_N, penalized_N = ctx.saved_tensors
        # In place, as p is not needed again. Autograd raises an error on a second backward pass.
        grad_NV = p_NV.mul_((grad_N * (ctx.weight + 2 * ctx.z_loss * log_z_N))[:, None])
        grad_NV.scatter_add_(1, targets_N[:, None], -ctx.weight * grad_N[:, None])
        if ctx.penalty:
            share_N1 = ctx.penalty * grad_N[:, None]
            grad_NV.sub_(share_N1 / grad_NV.shape[1]).scatter_add_(1, penalized_N[:, None], share_N1)
        return grad_NV, None, None, None, None, None


def cross_entropy_z(
    logits_NV: torch.Tensor,
    targets_N: torch.Tensor,
    z_loss: float,
    weight: float = 1.0,
    penalty: float = 0.0,
    penalized_N: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the loss of each token, its plain cross-entropy, log Z and the largest logit, each [N]. Logits are fp32.

    The loss is weight * cross-entropy + z_loss * log^2 Z + penalty * (z_k - mean_v z_v), where Z = sum_v exp(z_v) and k
    is `penalized_N`, by default the target. Main losses of another kind use weight=0 to get z-loss alone.
    z-loss: PaLM (Chowdhery et al. 2022), section 5; Wortsman et al. 2023, 3.1.2.
    """
    penalized_N = targets_N if penalized_N is None else penalized_N
    return _CrossEntropyZ.apply(logits_NV, targets_N, z_loss, weight, penalty, penalized_N)[:4]
