"""SOAP, implemented by pytorch-optimizer."""

import math
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
class SOAP(AdamFields):
    """Adam in the eigenbasis of Shampoo's two preconditioners, running means of G G^T and G^T G. Vyas et al. 2024
    (arXiv 2409.11321), algorithm 3, and nikhilvyas/SOAP.

    The first step only initializes the preconditioners. Decay is applied after the update. The vocabulary dimension of
    embedding and head has no preconditioner where it exceeds the width, as in the authors' runs, whose vocabularies
    exceed their limit of 10,000.
    """

    name: Literal["soap"] = "soap"
    width_as_adam = False
    lr: Annotated[float, Field(gt=0)] = 3e-2
    """Peak learning rate of the schedule."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the first moment. Default of the authors."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the second moment and of the preconditioners. Default of the authors."""
    precondition_frequency: Annotated[int, Field(ge=1)] = 10
    """Number of steps between updates of the eigenbases. Default of the authors."""
    max_precondition_dim: Annotated[int, Field(ge=1)] = 10_000
    """Largest dimension of a matrix that gets a preconditioner. Default of the authors."""

    def param_group(self, group: ParameterGroup) -> dict[str, Any]:
        longest = self.max_precondition_dim
        if group.kind in ("embedding", "head"):
            longest = min(longest, max(p.shape[-1] for p in group.parameters))
        return super().param_group(group) | {"max_precondition_dim": longest}

    def lr_divisor(self, optimizer: Any, parameter: torch.Tensor, eps: float | None) -> torch.Tensor | float:
        # The first step is none, and takes no decay either.
        return math.inf if self.group_step(optimizer, parameter) == 1 else 1.0

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        import pytorch_optimizer

        return pytorch_optimizer.SOAP(
            [self.param_group(g) for g in groups],
            betas=self.betas,
            precondition_frequency=self.precondition_frequency,
        )
