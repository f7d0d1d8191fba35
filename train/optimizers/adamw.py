"""AdamW, the paper's optimizer, and AdamW with a changed update."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.parametrization import ParameterGroup
from train.optimizers.base import OPTIMIZER, ManualOptimizer, OptimizerConfig

Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AdamFields(OptimizerConfig):
    """The fields of everything that divides a moment by the root of another."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay rate of the first moment. Wortsman et al. 2023, section 2.1."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the second moment. Wortsman et al. 2023, section 2.1."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the bias-corrected second moment; 0 would make 0/0 of a row that gets no gradient.
    Wortsman et al. 2023, section 2.1."""

    def epsilon(self, group: ParameterGroup) -> float | None:
        return self.eps * group.scaling.eps

    @property
    def betas(self) -> tuple[float, float]:
        return self.beta1, self.beta2


@OPTIMIZER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AdamW(AdamFields):
    """u = m_hat / (sqrt(v_hat) + eps), m and v running means of the gradient and its square: AdamW. Loshchilov &
    Hutter 2019; torch's fused kernel."""

    shards = True
    name: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-2
    """Peak learning rate of the schedule."""
    update_clip: Annotated[float, Field(gt=0)] | None = None
    """Largest RMS d of a tensor's update: u <- u / max(1, RMS(u) / d); null turns it off. Adafactor's, d = 1 there:
    Shazeer & Stern 2018, section 6."""

    def changes(self) -> list[Change]:
        """What is done to u before it is taken; any of them leaves torch's kernel for ours."""
        return [] if self.update_clip is None else [clip_update(self.update_clip)]

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        chosen = [self.param_group(g) for g in groups]
        if changes := self.changes():
            return ChangedAdamW(chosen, self.betas, changes)
        return torch.optim.AdamW(chosen, betas=self.betas, fused=True)


def clip_update(largest: float) -> Change:
    def clipped(u: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return u / (u.square().mean().sqrt() / largest).clamp_min(1.0)

    return clipped


class ChangedAdamW(ManualOptimizer):
    """AdamW whose u goes through `changes`, functions of u and the gradient, before the step."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], changes: Sequence[Change]) -> None:
        super().__init__(groups, {"betas": betas})
        self.changes = changes

    def update(self) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                state["step"] += 1
                m, v = state["exp_avg"], state["exp_avg_sq"]
                m.lerp_(p.grad, 1 - beta1)
                v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                root = v.sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
                u = (m / (1 - beta1 ** state["step"])).div_(root)
                for change in self.changes:
                    u = change(u, p.grad)
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-group["lr"])
