"""StableAdamW, implemented by optimi. pytorch-optimizer agrees with it from version 4.1 on."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.parametrization import ParameterGroup
from train.optimizers.adamw import AdamFields
from train.optimizers.base import OPTIMIZER


@OPTIMIZER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StableAdamW(AdamFields):
    """AdamW whose LR is divided by max(1, RMS_t), RMS_t^2 = mean(g^2 / max(v, eps^2)) over each tensor, v the updated
    second moment. Wortsman et al. 2023 (Stable and low-precision training for large-scale vision-language models,
    arXiv 2304.13013), algorithm 2. Bias correction is built into the betas. Decay is divided by the same factor."""

    shards = True
    name: Literal["stable_adamw"] = "stable_adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-2
    """Peak learning rate of the schedule."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay rate of the second moment. Default of optimi and of the paper."""
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the root of the bias-corrected second moment. Default of optimi and of the paper."""

    def second_moment(self, optimizer: Any, parameter: torch.Tensor, eps: float) -> torch.Tensor | None:
        # The betas are corrected instead of the mean.
        found: torch.Tensor | None = optimizer.state[parameter].get("exp_avg_sq")
        return found

    def lr_divisor(self, optimizer: Any, parameter: torch.Tensor, eps: float | None) -> torch.Tensor | float:
        assert eps is not None
        v = self.second_moment(optimizer, parameter, eps)
        if v is None or parameter.grad is None:
            return 1.0
        return (parameter.grad / v.sqrt().clamp_min(eps)).square().mean().sqrt().clamp_min(1.0)

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        from optimi import StableAdamW as Optimi

        # The plain loop: the Triton kernel sums in no fixed order, and the foreach path is deprecated.
        return Optimi([self.param_group(g) for g in groups], self.lr, self.betas, triton=False, foreach=False)
