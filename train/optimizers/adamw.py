"""AdamW, the optimizer of Wortsman et al. 2023, and AdamW with a transformed update."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.parametrization import ParameterGroup
from train.optimizers.base import OPTIMIZER, ManualOptimizer, OptimizerConfig

# Maps an update u and the gradient to a new update.
Transform = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AdamFields(OptimizerConfig):
    """The fields of optimizers that divide by the root of a second moment, as Adam does."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay rate of the first moment. Wortsman et al. 2023, section 2.1."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the second moment. Wortsman et al. 2023, section 2.1."""
    beta2_half_life: Annotated[float, Field(gt=0)] | None = None
    """Tokens after which a squared gradient counts half in the second moment: beta2 = 2^(-tokens per step / half-life),
    whatever beta2 is. Null means beta2 applies. Marek et al. 2025 (Small Batch Size Training for Language Models, arXiv
    2507.07101) keep it fixed when they change the batch size."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the bias-corrected second moment; it can't be 0, since rows without a gradient would be 0/0.
    Wortsman et al. 2023, section 2.1."""

    @property
    def has_edge(self) -> bool:
        """Returns whether Adam's edge of stability is this optimizer's: one bias-corrected momentum, at the full LR."""
        return False

    def epsilon(self, group: ParameterGroup) -> float | None:
        return self.eps * group.scaling.eps

    def in_force(self, steps: int, tokens: int) -> Self:
        found = super().in_force(steps, tokens)
        if found.beta2_half_life is None:
            return found
        return replace(found, beta2=2 ** (-tokens / found.beta2_half_life), beta2_half_life=None)

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
    """Clips the update of each tensor to this RMS d, u <- u / max(1, RMS(u) / d); null turns it off. Adafactor has
    d = 1 (Shazeer & Stern 2018, section 6)."""

    @property
    def has_edge(self) -> bool:
        return type(self) is AdamW and self.update_clip is None

    def second_moment(self, optimizer: Any, parameter: torch.Tensor, eps: float) -> torch.Tensor | None:
        return corrected_second_moment(optimizer.state[parameter], self.beta2)

    def transforms(self) -> list[Transform]:
        """Returns the transforms of u, applied in order before the step. If there are none, torch's kernel is used."""
        return [] if self.update_clip is None else [clip_rms(self.update_clip)]

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        param_groups = [self.param_group(g) for g in groups]
        if transforms := self.transforms():
            return TransformedAdamW(param_groups, self.betas, transforms)
        return LeanAdamW(param_groups, betas=self.betas, fused=True)


class LeanAdamW(torch.optim.AdamW):
    """torch's fused AdamW, which on CPUs calls its kernel once per setting and counts the steps of all tensors in one.

    torch walks through every tensor's state in Python and makes one call per group, which takes as long as the update
    itself for a small model. The kernel and the state are the same, so the weights are too, to the bit.
    """

    _shared = False
    """Whether all tensors share `_count`."""
    _count: torch.Tensor

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._shared = True  # A checkpoint keeps the one count.
        self._separate_counts()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        usual = all(p.grad is not None and p.device.type == "cpu" and type(p) is nn.Parameter for p in parameters)
        if usual and self.state.keys() == set(parameters) and self._one_count():
            self._update()
        else:
            self._separate_counts()
            super().step()
        return loss

    def _one_count(self) -> bool:
        """Shares one count of steps among all tensors, and returns whether they agree."""
        if self._shared:
            return True
        counts = [state["step"] for state in self.state.values()]
        if any(count != counts[0] for count in counts):
            return False
        self._count, self._shared = counts[0], True
        for state in self.state.values():
            state["step"] = self._count
        return True

    def _separate_counts(self) -> None:
        if self._shared:
            self._shared = False
            for state in self.state.values():
                state["step"] = state["step"].clone()

    def _update(self) -> None:
        lists: dict[tuple[float, ...], list[torch.Tensor]] = {}
        for group in self.param_groups:
            setting = (float(group["lr"]), group["weight_decay"], group["eps"], *group["betas"])
            lists.setdefault(setting, []).extend(group["params"])
        self._count += 1
        for (lr, weight_decay, eps, beta1, beta2), parameters in lists.items():
            states = [self.state[p] for p in parameters]
            torch._fused_adamw_(
                parameters, [p.grad for p in parameters if p.grad is not None], [s["exp_avg"] for s in states],
                [s["exp_avg_sq"] for s in states], [], [self._count] * len(parameters),
                lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay, eps=eps, amsgrad=False, maximize=False,
            )  # fmt: skip


def corrected_second_moment(state: Mapping[str, Any], beta2: float) -> torch.Tensor | None:
    """Returns v / (1 - beta2^t) from a parameter's state; None if the state has no v."""
    if "exp_avg_sq" not in state:
        return None
    v: torch.Tensor = state["exp_avg_sq"]
    return v / (1 - beta2 ** float(state["step"]))


def clip_rms(largest: float) -> Transform:
    """Returns a transform that scales u down to an RMS of at most `largest`."""

    def clip(u: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        return u / (u.square().mean().sqrt() / largest).clamp_min(1.0)

    return clip


class TransformedAdamW(ManualOptimizer):
    """AdamW that applies transforms to the update u of each tensor."""

    def __init__(
        self, groups: list[dict[str, Any]], betas: tuple[float, float], transforms: Sequence[Transform]
    ) -> None:
        super().__init__(groups, {"betas": betas})
        self.transforms = transforms

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
                for transform in self.transforms:
                    u = transform(u, p.grad)
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(u, alpha=-group["lr"])
