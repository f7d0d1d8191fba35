"""MARS, implemented by pytorch-optimizer."""

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
class MARS(AdamFields):
    """AdamW on c = g + gamma beta1 / (1 - beta1) (g - g of the step before), cut to norm 1 for each tensor; vectors use
    g itself. Yuan et al. 2024 (MARS, arXiv 2411.10438), algorithm 2, and AGI-Arena/MARS.

    This is MARS-AdamW in the approximate form, which the authors use: both gradients are those of their own batches.
    The library adds 1e-15 to v, so that eps is no less than 3e-8 in effect; the authors' code doesn't.
    """

    name: Literal["mars"] = "mars"
    lr: Annotated[float, Field(gt=0)] = 1e-2
    """Peak learning rate of the schedule."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the first moment. Default of the authors."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay rate of the second moment. Default of the authors."""
    gamma: Annotated[float, Field(ge=0)] = 0.025
    """Strength of the correction; 0 is AdamW, apart from the cut. Default of the authors."""

    def param_group(self, group: ParameterGroup) -> dict[str, Any]:
        found = super().param_group(group)
        return found | {"weight_decay_1d": found["weight_decay"]}

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        import pytorch_optimizer

        return pytorch_optimizer.MARS(
            [self.param_group(g) for g in groups],
            lr=self.lr,
            betas=self.betas,
            gamma=self.gamma,
            lr_1d=self.lr,  # only their ratio is used
            betas_1d=self.betas,
            foreach=False,
        )
