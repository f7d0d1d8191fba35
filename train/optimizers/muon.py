"""Muon for hidden matrices and AdamW for everything else, both torch's, combined into one optimizer.

Routers of mlp=moe are AdamW's, which is our reading: orthogonalized updates would move the rows of all experts equally,
however few tokens choose one.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.parametrization import ParameterGroup
from train.optimizers.adamw import AdamFields, corrected_second_moment
from train.optimizers.base import OPTIMIZER, ManualOptimizer


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MuonFields(AdamFields):
    """The fields of optimizers that orthogonalize the momentum of hidden matrices and use AdamW for the rest."""

    width_as_adam = False
    lr: Annotated[float, Field(gt=0)] = 3e-2
    """Peak learning rate of the schedule, for the hidden matrices."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of the momentum m, a running mean of the gradient. Jordan et al. 2024."""
    nesterov: bool = True
    """Orthogonalize momentum m + (1 - momentum) g instead of m. Jordan et al. 2024."""
    ns_steps: Annotated[int, Field(ge=1, lt=100)] = 5
    """Number of Newton-Schulz iterations, with coefficients (3.4445, -4.7750, 2.0315). Jordan et al. 2024."""
    adam_lr: Annotated[float, Field(gt=0)] = 1.0
    """LR of AdamW's tensors relative to that of the hidden matrices; 1 in Liu et al. 2025, section 2.2."""

    @staticmethod
    def orthogonalizes(group: ParameterGroup) -> bool:
        """Returns whether the group's updates are orthogonalized: hidden tensors, all of them matrices, no routers."""
        routers = {id(p) for p in group.routers}
        return group.kind == "hidden" and all(p.ndim == 2 and id(p) not in routers for p in group.parameters)

    def lr_scale(self, group: ParameterGroup) -> float:
        return super().lr_scale(group) * (1.0 if self.orthogonalizes(group) else self.adam_lr)

    def epsilon(self, group: ParameterGroup) -> float | None:
        return None if self.orthogonalizes(group) else super().epsilon(group)

    def second_moment(self, optimizer: Any, parameter: torch.Tensor, eps: float) -> torch.Tensor | None:
        return corrected_second_moment(optimizer.state[parameter], self.beta2)

    def for_matrices(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Returns the optimizer of the hidden matrices."""
        raise NotImplementedError

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        routers = {id(p) for group in groups for p in group.routers}

        def treated(p: torch.nn.Parameter) -> tuple[int, bool]:
            return p.ndim, id(p) in routers

        # Hidden tensors can include routers, and vectors, which a reparametrization adds to a layer.
        split = [
            replace(group, parameters=list(parameters))
            for group in groups
            for _, parameters in groupby(sorted(group.parameters, key=treated), key=treated)
        ]
        matrices = [self.param_group(g) for g in split if self.orthogonalizes(g)]
        others = [self.param_group(g) for g in split if not self.orthogonalizes(g)]
        parts = [self.for_matrices(matrices)] if matrices else []
        if others:
            parts.append(torch.optim.AdamW(others, betas=self.betas, fused=True))
        return CombinedOptimizer(parts)


@OPTIMIZER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Muon(MuonFields):
    """The momentum of each hidden matrix, orthogonalized by Newton-Schulz iterations in bf16; AdamW for embedding,
    head, routers and vectors. Jordan et al. 2024 (KellerJordan/Muon); torch.optim.Muon.

    Decay uses the LR before it is adjusted to the shape of the matrix.
    """

    name: Literal["muon"] = "muon"
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    """LR factor of a matrix. match_rms_adamw: 0.2 sqrt(max(rows, columns)), which gives u AdamW's RMS of about 0.2
    (Liu et al. 2025, Muon is Scalable for LLM Training, arXiv 2502.16982, eq. 4). original: sqrt(max(1, rows /
    columns)) (Jordan et al. 2024)."""

    def for_matrices(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Muon(
            groups,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.ns_steps,
            adjust_lr_fn=self.adjust_lr_fn,
        )


class CombinedOptimizer(ManualOptimizer):
    """Several optimizers as one. It owns their param_groups and state and hands them over for each step."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        groups: list[dict[str, Any]] = [g | {"part": i} for i, part in enumerate(parts) for g in part.param_groups]
        super().__init__(groups, {})
        self.parts = list(parts)

    def update(self) -> None:
        for i, part in enumerate(self.parts):
            part.param_groups = [g for g in self.param_groups if g["part"] == i]
            part.state = self.state
            part.step()
