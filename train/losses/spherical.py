"""The Z-loss of de Brebisson & Vincent, unrelated to PaLM's z-loss. Shape suffixes: N tokens, V vocabulary."""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.probes import Stats
from train.losses.base import LOSS, LossConfig, Objective, Output, at_target

# Avoids 0/0 for equal logits. It is far below any standard deviation, so the loss is scale-invariant up to rounding.
EPS = 1e-12


class _Zeta(torch.autograd.Function):
    """Computes zeta_y, [N], with gradient (onehot(target) - 1 / V - zeta_y zeta / V) / sigma."""

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor):
        centred_NV = logits_NV - logits_NV.mean(-1, keepdim=True)
        square_N = torch.linalg.vector_norm(centred_NV, dim=-1).square() / logits_NV.shape[1]
        sigma_N = (square_N + EPS**2).sqrt()
        zeta_N = at_target(centred_NV, targets_N) / sigma_N
        ctx.save_for_backward(centred_NV, targets_N, sigma_N, zeta_N)
        return zeta_N

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor):
        centred_NV, targets_N, sigma_N, zeta_N = ctx.saved_tensors
        grad_N = grad_N / sigma_N
        share_N = grad_N / centred_NV.shape[1]
        # In place, as the centred logits are not needed again. Autograd raises an error on a second backward pass.
        grad_NV = centred_NV.mul_((-share_N * zeta_N / sigma_N)[:, None]).sub_(share_N[:, None])
        return grad_NV.scatter_add_(1, targets_N[:, None], grad_N[:, None]), None


def zeta(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Returns (z_y - mu) / sigma, [N]. mu and sigma are mean and population standard deviation over the vocabulary."""
    return _Zeta.apply(logits_NV, targets_N)


class SphericalObjective(Objective):
    config: "Spherical"

    def main(self, output: Output, targets_N: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        zeta_N = zeta(output.logits_NV, targets_N)
        return F.softplus(self.config.b - zeta_N, beta=self.config.a).mean(), {"output/zeta": zeta_N.detach().mean()}


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Spherical(LossConfig):
    """1/a log(1 + exp(a (b - zeta_y))) with zeta = (z - mu) / sigma: invariant to shift and scale of the logits.

    de Brebisson & Vincent 2016 (arXiv 1604.08859), the Z-loss. It is not a likelihood. Auxiliary terms (including
    z_loss) and soft_cap break the invariance. The paper tunes a and b for each task. The defaults here are not from the
    paper; they suit vocabularies of thousands of tokens, where zeta_y can reach sqrt(V - 1).
    """

    name: Literal["spherical"] = "spherical"
    a: Annotated[float, Field(gt=0)] = 0.1
    """Sharpness of the softplus."""
    b: float = 10.0
    """Value of zeta_y at the bend of the softplus."""

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return SphericalObjective(self)
