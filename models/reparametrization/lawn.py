"""LAWN, logit attenuating weight normalization. Gupta et al. 2021 (arXiv 2108.05839); an interpretation.

The abstract's idea is exact: after free training the norms of the last layers' weights are kept. The details are ours:
  free        the optimizer as it is, without weight decay of the matrices that are constrained later;
  constrained c = |w| of each such matrix (Frobenius norm) at the switch. At each step the gradient's part along w is
              removed before the optimizer sees it, so is the update's, then w is brought back to length c.
The moments of the free phase are kept. The constrained phase starts with a learning-rate warm-up of its own.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.layers import Linear
from models.reparametrization.base import REPARAMETRIZATION, Reparametrization, ReparametrizationConfig, linears
from models.training import Training

if TYPE_CHECKING:
    from models.architecture import Architecture


def tangent(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x without its part along the weight; x itself for a weight of zeros."""
    square = weight.square().sum()
    return x - (x * weight).sum() / square.clamp_min(torch.finfo(square.dtype).tiny) * weight


class LAWN(Reparametrization):
    norms: torch.Tensor

    def __init__(self, config: "LAWNConfig", count: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("norms", torch.zeros(count))
        self._before: list[torch.Tensor] = []

    def before_step(self, model: Any, step: int, steps: int) -> None:
        free = self.config.free(steps)
        if step < free:
            return
        weights = [linear.weight for linear in self.config.constrained(model)]
        if step == free:
            self.norms.copy_(torch.stack([weight.norm() for weight in weights]))
        for weight in weights:
            if weight.grad is not None:
                weight.grad.copy_(tangent(weight.grad, weight))
        self._before = [weight.detach().clone() for weight in weights]

    def after_step(self, model: Any, step: int, lr: float) -> None:
        if not self._before:
            return
        for linear, before, norm in zip(self.config.constrained(model), self._before, self.norms, strict=True):
            moved = before + tangent(linear.weight - before, before)
            linear.weight.copy_(moved * (norm / moved.norm().clamp_min(torch.finfo(moved.dtype).tiny)))
        self._before = []

    def lr_factor(self, step: int, steps: int) -> float:
        free, warmup = self.config.free(steps), self.config.warmup(steps)
        # Without a free phase the schedule's own warm-up is the one at the start.
        return min(1.0, (step - free + 1) / warmup) if 0 < free <= step and warmup else 1.0


@REPARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LAWNConfig(ReparametrizationConfig):
    """After a free phase the norms of MLPs and head are frozen. Our interpretation of LAWN, Gupta et al. 2021.

    From then on only the directions of these matrices are trained; the module's docstring has the steps. They are not
    decayed in either phase, whatever optimizer.decay says; all other tensors are.
    """

    name: Literal["lawn"] = "lawn"
    free_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Free phase as a share of all steps."""
    free_steps: Annotated[int, Field(ge=0)] | None = None
    """Free phase in steps; takes the place of free_fraction."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Linear warm-up at the start of the constrained phase, as a share of all steps; it multiplies the schedule."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """That warm-up in steps; takes the place of warmup_fraction."""
    attention: bool = False
    """Constrain the matrices of attention too."""

    def free(self, steps: int) -> int:
        return round(self.free_fraction * steps) if self.free_steps is None else self.free_steps

    def warmup(self, steps: int) -> int:
        return round(self.warmup_fraction * steps) if self.warmup_steps is None else self.warmup_steps

    def constrained(self, model: Any) -> list[Linear]:
        def chosen(name: str) -> bool:
            return name == "head" or ".mlp." in name or (self.attention and ".attention." in name)

        return [linear for name, linear in linears(model) if chosen(name)]

    def build(self, model: Any) -> Reparametrization:
        chosen = self.constrained(model)
        for linear in chosen:
            linear.decays = False
        return LAWN(self, len(chosen))

    def fits(self, config: "Architecture") -> None:
        super().fits(config)
        steps = cast(Training, config).steps
        if self.free(steps) + self.warmup(steps) > steps:
            raise ValueError(
                f"reparametrization.free_steps={self.free(steps)} and warmup_steps={self.warmup(steps)} "
                f"of reparametrization=lawn are longer than the run, steps={steps}: shorten one of them"
            )
