"""MARS, implemented here because pytorch-optimizer's adds 1e-15 to v and divides eps by the bias correction."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.parametrization import ParameterGroup
from train.optimizers.adamw import AdamFields
from train.optimizers.base import OPTIMIZER, ManualOptimizer


@OPTIMIZER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MARS(AdamFields):
    """AdamW on c = g + gamma beta1 / (1 - beta1) (g - g of the step before), cut to norm 1 for each tensor; vectors use
    g itself. Yuan et al. 2024 (MARS, arXiv 2411.10438), algorithm 2, and AGI-Arena/MARS.

    This is MARS-AdamW in the approximate form, which the authors use: both gradients are those of their own batches.
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

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        return VarianceReduced([self.param_group(g) for g in groups], self.betas, self.gamma)


class VarianceReduced(ManualOptimizer):
    """The update of MARS; nothing waits for the host."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], gamma: float) -> None:
        super().__init__(groups, {"betas": betas})
        self.gamma = gamma

    def update(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update_one(group, p, p.grad)

    def _update_one(self, group: dict[str, Any], p: torch.Tensor, g: torch.Tensor) -> None:
        state = self.state[p]
        if not state:
            state |= {"step": 0} | {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq", "previous")}
        (beta1, beta2), m, v, previous = group["betas"], state["exp_avg"], state["exp_avg_sq"], state["previous"]
        state["step"] += 1
        c = g if p.ndim < 2 else self._corrected(g, previous, beta1)
        m.lerp_(c, 1 - beta1)
        v.mul_(beta2).addcmul_(c, c, value=1 - beta2)
        root = v.sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.addcdiv_(m, root, value=-group["lr"] / (1 - beta1 ** state["step"]))
        previous.copy_(g)

    def _corrected(self, g: torch.Tensor, previous: torch.Tensor, beta1: float) -> torch.Tensor:
        """Returns c, cut to norm 1; not finite where g is not."""
        c = g + self.gamma * beta1 / (1 - beta1) * (g - previous)
        norm = c.norm()
        return c / torch.where(norm > 1, norm, torch.ones_like(norm))
