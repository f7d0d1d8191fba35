"""Noisy softmax: lowers the target's logit by random noise. Shape suffixes: N tokens, V vocabulary, D model width."""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.probes import Stats
from train.losses.base import LOSS, LossConfig, Objective, Output
from train.losses.fused import cross_entropy_z


def margin(hidden_ND: torch.Tensor, rows_ND: torch.Tensor) -> torch.Tensor:
    """Returns ||W_y|| ||x|| (1 - cos theta_y), [N], where W_y is the head's row for the token's target."""
    product_N = (rows_ND * hidden_ND).sum(-1)
    # Rounding can make it negative, and the noise would then raise the logit.
    return (rows_ND.norm(dim=-1) * hidden_ND.norm(dim=-1) - product_N).clamp_min(0)


class NoisySoftmaxObjective(Objective):
    config: "NoisySoftmax"

    def main(self, output: Output, targets_N: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        noise_N = torch.randn(
            targets_N.shape,
            generator=output.generator(),
            device=output.logits_NV.device,
            dtype=output.logits_NV.dtype,
        )
        loss_N, lowered_N = self.tokens(output, targets_N, noise_N)
        return loss_N.mean(), {"output/noise": lowered_N.detach().mean()}

    def tokens(
        self, output: Output, targets_N: torch.Tensor, noise_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the loss of each token for given noise xi, and how much the target's logit is lowered, each [N]."""
        logits_NV = output.logits_NV
        margin_N = margin(output.hidden_ND.to(logits_NV.dtype), output.head_VD[targets_N].to(logits_NV.dtype))
        lowered_N = self.config.alpha * margin_N * noise_N.abs()
        noisy_NV = logits_NV.scatter_add(1, targets_N[:, None], -lowered_N[:, None])
        return cross_entropy_z(noisy_NV, targets_N, 0.0)[0], lowered_N


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoisySoftmax(LossConfig):
    """Cross-entropy with z_y <- z_y - alpha ||W_y|| ||x|| (1 - cos theta_y) |xi|, xi ~ N(0, 1) for each token.

    Chen, Deng & Du 2017 (arXiv 1708.03769). The noise fades as the hidden state x aligns with the target's row W_y of
    the head. It is added in training only; z-loss and the other terms use the logits without noise. Implemented from
    summaries of the paper, which leave open whether its tuned values are alpha or alpha^2. Here alpha is the factor
    itself, and the gradient also flows through the norms and the angle.
    """

    name: Literal["noisy_softmax"] = "noisy_softmax"
    reads_head = True
    alpha: Annotated[float, Field(ge=0)] = 0.1
    """Strength of the noise; 0 is plain cross-entropy."""

    @model_validator(mode="after")
    def _logits_are_products(self) -> "NoisySoftmax":
        if self.soft_cap is not None:
            raise ValueError(
                f"soft_cap={self.soft_cap:g} clashes with loss=noisy_softmax, whose noise assumes logits W_y.x without "
                "a cap: use soft_cap=null or another loss"
            )
        return self

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return NoisySoftmaxObjective(self)
