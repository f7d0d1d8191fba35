"""Adam with critical momenta, implemented here because the authors' optimizer leaves its buffers out of checkpoints."""

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
class AdamCM(AdamFields):
    """Adam on a = m + the mean of `topc` past momenta, those of the steps with the largest gradients, and v the running
    mean of a^2. Malviya et al. 2024 (Promoting Exploration in Memory-Augmented Adam using Critical Momenta, arXiv
    2307.09638), algorithm 1, and chandar-lab/CMOptimizer.

    As in the authors' code, the first step only stores the raw gradient in the buffer and applies no update.
    """

    name: Literal["adam_cm"] = "adam_cm"
    lr: Annotated[float, Field(gt=0)] = 3e-3
    """Peak learning rate of the schedule."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay rate of the second moment. Default of the authors."""
    topc: Annotated[int, Field(ge=1)] = 5
    """Number of momenta in the buffer, each of the size of the model. Default of the authors."""
    priority_decay: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Factor on the buffer's priorities (gradient norms) after each step. Default of the authors."""
    synced: bool = True
    """Priority of a momentum: the sum of all tensors' gradient norms (true) or the norm of its own tensor (false).
    Default of the authors."""

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        param_groups = [self.param_group(g) for g in groups]
        return CriticalMomenta(param_groups, self.betas, self.topc, self.priority_decay, self.synced)


class CriticalMomenta(ManualOptimizer):
    """The update of AdamCM. The buffer entry to replace is chosen on the device, so nothing waits for the host."""

    def __init__(
        self, groups: list[dict[str, Any]], betas: tuple[float, float], topc: int, priority_decay: float, synced: bool
    ) -> None:
        super().__init__(groups, {"betas": betas})
        self.topc, self.priority_decay, self.synced = topc, priority_decay, synced

    def update(self) -> None:
        updated = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms = list(torch._foreach_norm([p.grad for _, p in updated]))
        if self.synced:
            norms = [torch.stack(norms).sum()] * len(norms)
        for (group, p), norm in zip(updated, norms, strict=True):
            self._update_one(group, p, norm)

    def _update_one(self, group: dict[str, Any], p: torch.Tensor, norm: torch.Tensor) -> None:
        state = self.state[p]
        if not state:
            state |= {
                "step": 0,
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
                "buffer": p.new_zeros(self.topc, *p.shape),
                "priority": p.new_zeros(self.topc),
            }
        beta1, beta2 = group["betas"]
        m, v, buffer, priority = (state[k] for k in ("exp_avg", "exp_avg_sq", "buffer", "priority"))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        filled = min(state["step"], self.topc)
        state["step"] += 1
        if filled == 0:
            buffer[0], priority[0] = p.grad, norm
        else:
            m.lerp_(p.grad, 1 - beta1)
            a = m + buffer.sum(0) / filled
            if filled < self.topc:
                buffer[filled], priority[filled] = m, norm
            else:
                least = priority.argmin(keepdim=True)
                better = norm > priority[least]
                buffer[least] = torch.where(better, m, buffer[least])
                priority[least] = torch.where(better, norm, priority[least])
            v.mul_(beta2).addcmul_(a, a, value=1 - beta2)
            root = v.sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
            p.addcdiv_(a, root, value=-group["lr"] / (1 - beta1 ** state["step"]))
        priority.mul_(self.priority_decay)
