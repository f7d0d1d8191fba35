"""Hyperball: matrices keep their Frobenius norm, and each update turns them by a fixed angle.

    W <- R n(W - lr R n(u)),   n(x) = x / ||x||,   R = ||W||

u is the update of a base optimizer, AdamW or Muon. Wen et al. 2026 (Fantastic Pretraining Optimizers and Where to Find
Them II, arXiv 2606.16899); AdamH and MuonH in marin-community/levanter. All matrices of the blocks and the head are on
their hyperballs and have no decay. The embedding and vectors are trained by AdamW.

A matrix that starts at zero has no radius: choices with such matrices are refused.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.parametrization import ParameterGroup
from train.optimizers.adamw import AdamFields, corrected_second_moment
from train.optimizers.base import OPTIMIZER, ManualOptimizer, OptimizerConfig, follows_weights
from train.optimizers.muon import MuonFields

if TYPE_CHECKING:
    from train.config.schema import Config

TINY = 1e-30
"""Avoids 0/0."""


class Hyperball(ManualOptimizer):
    """Runs a base optimizer and puts the matrices of groups with `radius` back on their hyperballs."""

    def __init__(self, base: torch.optim.Optimizer) -> None:
        super().__init__(base.param_groups, {})
        self.base = base

    def update(self) -> None:
        held = [(group, group["lr"]) for group in self.param_groups if group["radius"]]
        moved = [(p, p.detach().clone(), lr) for group, lr in held for p in group["params"] if p.grad is not None]
        # The base optimizer moves them by u itself, so that u is exact however small the LR is.
        for group, _ in held:
            group["lr"] = 1.0
        self.base.param_groups, self.base.state = self.param_groups, self.state
        self.base.step()
        for group, lr in held:
            group["lr"] = lr
        for p, before, lr in moved:
            p.copy_(turned(before, before - p, lr))


def turned(weight: torch.Tensor, u: torch.Tensor, lr: float) -> torch.Tensor:
    """Returns R n(W - lr R n(u)) with R = ||W||."""
    radius = weight.norm()
    step = weight - lr * radius * u / u.norm().clamp_min(TINY)
    return step * (radius / step.norm().clamp_min(TINY))


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class HyperballFields(OptimizerConfig):
    adam_lr: Annotated[float, Field(gt=0)] = 0.3
    """LR of AdamW for embedding and vectors relative to `lr`. 0.03 in levanter at an LR of 0.02."""

    @staticmethod
    def has_radius(group: ParameterGroup) -> bool:
        """Returns whether the group's tensors keep their norm."""
        return group.kind in ("hidden", "head") and all(p.ndim == 2 for p in group.parameters)

    def fits(self, config: "Config") -> None:
        super().fits(config)
        if follows_weights(config):
            raise ValueError(
                f"optimizer={self.name} sets the size of updates by the norm of the weights, and so does "
                f"parametrization={config.parametrization.name}: use parametrization=standard or optimizer=adamw"
            )
        for choice, small, instead in (
            (f"augmented_shortcut={config.augmented_shortcut}", config.augmented_shortcut is not None, "null"),
            (f"share_attention={config.share_attention}", config.share_attention > 1, "1"),
            (f"head={config.head.name}", config.head.starts_small, "linear"),
        ):
            if small:
                raise ValueError(
                    f"optimizer={self.name} keeps the norms that matrices start with, and {choice} starts one near "
                    f"zero: use {choice.partition('=')[0]}={instead} or optimizer=adamw"
                )

    def lr_scale(self, group: ParameterGroup) -> float:
        return group.scaling.lr * (1.0 if self.has_radius(group) else self.adam_lr)

    def decay_at_peak(self, group: ParameterGroup) -> float:
        return 0.0 if self.has_radius(group) else super().decay_at_peak(group)

    def param_group(self, group: ParameterGroup) -> dict[str, Any]:
        found = super().param_group(group) | {"radius": self.has_radius(group)}
        return found | {"weight_decay": 0.0} if found["radius"] else found


@OPTIMIZER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AdamH(HyperballFields, AdamFields):
    """AdamW whose matrices keep their Frobenius norm R: W <- R n(W - lr R n(u)), n(x) = x / ||x||, without decay. Wen
    et al. 2026 (Hyperball, arXiv 2606.16899); levanter's AdamH."""

    width_as_adam = False
    name: Literal["adamh"] = "adamh"
    lr: Annotated[float, Field(gt=0)] = 3e-2
    """Peak learning rate of the schedule: the length of a matrix's update relative to that of the matrix."""

    def second_moment(self, optimizer: Any, parameter: torch.Tensor, eps: float) -> torch.Tensor | None:
        return corrected_second_moment(optimizer.state[parameter], self.beta2)

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        split = [replace(group, parameters=[p]) for group in groups for p in group.parameters]
        return Hyperball(torch.optim.AdamW([self.param_group(g) for g in split], betas=self.betas, fused=True))


@OPTIMIZER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MuonH(HyperballFields, MuonFields):
    """Muon whose matrices keep their Frobenius norm R: W <- R n(W - lr R n(u)), n(x) = x / ||x||, without decay; so do
    AdamW's updates of the head and of routers. Wen et al. 2026 (Hyperball, arXiv 2606.16899); levanter's MuonH."""

    width_as_adam = False
    name: Literal["muonh"] = "muonh"
    lr: Annotated[float, Field(gt=0)] = 3e-2
    """Peak learning rate of the schedule: the length of a matrix's update relative to that of the matrix."""
    adam_lr: Annotated[float, Field(gt=0)] = 0.3
    """LR of AdamW for embedding and vectors relative to `lr`. 0.03 in levanter at an LR of 0.02."""

    def for_matrices(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Muon(
            groups,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.ns_steps,
            adjust_lr_fn="match_rms_adamw",
        )

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        return Hyperball(super().build(groups))
