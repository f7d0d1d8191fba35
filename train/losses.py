"""Training losses, the `loss` axis. Nats per token, mean over tokens.

Shape suffixes: B batch, T tokens, N = B T, V vocabulary.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, Axis
from models.probes import Stats


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LossConfig:
    name: str

    def compute(self, logits_BTV: torch.Tensor, targets_BT: torch.Tensor, watch: bool) -> tuple[torch.Tensor, Stats]:
        """The scalar to minimise, and statistics: `loss` (plain cross-entropy) always, more with `watch`."""
        raise NotImplementedError


LOSS: Axis[LossConfig] = Axis("loss")


class _CrossEntropyZ(torch.autograd.Function):
    """(cross-entropy + c log^2 Z, cross-entropy, log Z), each [N], through one softmax.

    log Z is taken as max - log p_max, which never underflows since p_max >= 1/V. The gradient of the first is
    p (1 + 2 c log Z) - onehot(target); the other two are statistics and pass no gradient.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor, z_loss: float):
        p_NV = torch.softmax(logits_NV, -1)
        max_N, log_p_max_N = logits_NV.amax(-1), p_NV.amax(-1).log()
        log_z_N = max_N - log_p_max_N
        # Not log Z - logit, which loses a small loss under large logits.
        cross_entropy_N = max_N - logits_NV.gather(1, targets_N[:, None])[:, 0] - log_p_max_N
        ctx.save_for_backward(p_NV, targets_N, log_z_N)
        ctx.z_loss = z_loss
        ctx.mark_non_differentiable(cross_entropy_N, log_z_N, max_N)
        return cross_entropy_N + z_loss * log_z_N.square(), cross_entropy_N, log_z_N, max_N

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor, *_: Any):
        p_NV, targets_N, log_z_N = ctx.saved_tensors
        # In place: p has served. A second backward pass through it is an error that autograd reports.
        grad_NV = p_NV.mul_((grad_N * (1 + 2 * ctx.z_loss * log_z_N))[:, None])
        return grad_NV.scatter_add_(1, targets_N[:, None], -grad_N[:, None]), None, None


def cross_entropy_z(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, z_loss: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per-token loss with z-loss, plain cross-entropy, log Z and the largest logit, each [N]; fp32 logits.

    z-loss: c log^2 Z with Z = sum_v exp(logit_v). PaLM (Chowdhery et al. 2022), section 5; Wortsman et al. 2023, 3.1.2.
    """
    return _CrossEntropyZ.apply(logits_NV, targets_N, z_loss)


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CrossEntropy(LossConfig):
    name: Literal["cross_entropy"] = "cross_entropy"
    z_loss: Annotated[float, Field(ge=0)] = 1e-4
    """Coefficient of log^2 Z; 0 turns it off. Wortsman et al. 2023, section 2.1."""

    def compute(self, logits_BTV: torch.Tensor, targets_BT: torch.Tensor, watch: bool) -> tuple[torch.Tensor, Stats]:
        loss_N, cross_entropy_N, log_z_N, max_N = cross_entropy_z(
            logits_BTV.flatten(0, 1), targets_BT.flatten(), self.z_loss
        )
        stats: Stats = {"loss": cross_entropy_N.mean()}
        if watch:
            logits_BTV = logits_BTV.detach()
            stats["output/logit_mean"] = logits_BTV.mean()
            stats["output/logit_max"] = max_N.max()
            stats["output/log_z"] = log_z_N.mean()
            stats["output/log_z_squared"] = log_z_N.square().mean()
        return loss_N.mean(), stats
