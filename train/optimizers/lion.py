"""Lion, implemented by optimi."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.parametrization import ParameterGroup
from train.optimizers.base import OPTIMIZER, OptimizerConfig


@OPTIMIZER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Lion(OptimizerConfig):
    """u = sign(beta1 m + (1 - beta1) g), then m <- beta2 m + (1 - beta2) g: every weight moves by the LR. Chen et al.
    2023 (Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675), algorithm 2."""

    shards = True
    name: Literal["lion"] = "lion"
    lr: Annotated[float, Field(gt=0)] = 3e-3
    """Peak learning rate of the schedule."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the momentum in the update. Default of optimi and of the paper."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay rate of the momentum. Default of optimi and of the paper."""

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        from optimi import Lion as Optimi

        betas = self.beta1, self.beta2
        return Optimi([self.param_group(g) for g in groups], self.lr, betas, triton=False, foreach=False)
