"""AdEMAMix, implemented by pytorch-optimizer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.parametrization import ParameterGroup
from train.optimizers.adamw import AdamFields
from train.optimizers.base import OPTIMIZER


@OPTIMIZER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AdEMAMix(AdamFields):
    """u = (m_hat + alpha n) / (sqrt(v_hat) + eps): AdamW with a second, slow running mean n of the gradient.
    Pagliardini et al. 2024 (The AdEMAMix Optimizer, arXiv 2409.03137), algorithm 1.

    n has no bias correction. Early in a run alpha grows linearly from 0, and beta3 from beta1 such that the half-life
    grows linearly.
    """

    name: Literal["ademamix"] = "ademamix"
    lr: Annotated[float, Field(gt=0)] = 3e-3
    """Peak learning rate of the schedule."""
    beta1: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Decay rate of the fast mean m. Default of the authors."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay rate of the second moment. Default of the authors."""
    beta3: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    """Decay rate of the slow mean n. Default of the authors, whose runs have 256,000 steps and more."""
    alpha: Annotated[float, Field(ge=0)] = 5.0
    """Weight of n; 0 is AdamW. Default of the authors; 4 to 10 in their experiments."""
    grow_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps over which alpha and beta3 grow. 0: they are constant. Null: the whole run, as in the paper."""

    def in_force(self, steps: int, tokens: int) -> Self:
        found = super().in_force(steps, tokens)
        return replace(found, grow_steps=steps) if found.grow_steps is None else found

    def second_moment(self, optimizer: Any, parameter: torch.Tensor, eps: float) -> torch.Tensor | None:
        if "exp_avg_sq" not in optimizer.state[parameter]:
            return None
        v: torch.Tensor = optimizer.state[parameter]["exp_avg_sq"]
        return v / (1 - self.beta2 ** self.group_step(optimizer, parameter))

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        import pytorch_optimizer

        return pytorch_optimizer.AdEMAMix(
            [self.param_group(g) for g in groups],
            betas=(self.beta1, self.beta2, self.beta3),
            weight_decouple=True,
            alpha=self.alpha,
            t_alpha_beta3=self.grow_steps or None,
            foreach=False,
        )
