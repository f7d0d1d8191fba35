"""AdamW on the part of the gradient that is orthogonal to the weights, implemented by pytorch-optimizer."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.parametrization import ParameterGroup
from train.optimizers.adamw import AdamW
from train.optimizers.base import OPTIMIZER


@OPTIMIZER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class OrthoGrad(AdamW):
    """AdamW on g' = g - (w.g / w.w) w for each tensor, rescaled to the norm of g: the gradient without its component
    along the weights. Prieto et al. 2025 (Grokking at the Edge of Numerical Stability, arXiv 2501.04697). A tensor with
    a single element has no orthogonal component, so it is only decayed."""

    shards = False
    name: Literal["orthograd"] = "orthograd"  # type: ignore[assignment]
    lr: Annotated[float, Field(gt=0)] = 1e-2
    """Peak learning rate of the schedule."""

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        from pytorch_optimizer import OrthoGrad as Wrapper

        return Wrapper(super().build(groups))
