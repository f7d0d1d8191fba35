"""LAWN, logit attenuating weight normalization. Gupta et al. 2021 (arXiv 2108.05839); an interpretation.

Only the idea is known, from the abstract: after free training, the weight norms of the last layers are kept fixed. The
details are ours:
  free        the optimizer runs unchanged, but without weight decay of the matrices that are constrained later
  constrained c = |w| of each such matrix (Frobenius norm) at the switch. At each step the component along w is removed
              from the gradient before the optimizer sees it, and from the update; then w is rescaled to norm c. A
              matrix that is still zero at the switch has no norm to keep and stays free.
The optimizer's moments carry over. The constrained phase starts with its own learning-rate warm-up.
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
    """Returns x without its component along the weight; x itself if the weight is zero."""
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
        for weight, norm in zip(weights, self.norms, strict=True):
            if weight.grad is not None:
                weight.grad.copy_(torch.where(norm > 0, tangent(weight.grad, weight), weight.grad))
        self._before = [weight.detach().clone() for weight in weights]

    def after_step(self, model: Any, step: int, lr: float) -> None:
        if not self._before:
            return
        for linear, before, norm in zip(self.config.constrained(model), self._before, self.norms, strict=True):
            moved = before + tangent(linear.weight - before, before)
            rescaled = moved * (norm / moved.norm().clamp_min(torch.finfo(moved.dtype).tiny))
            linear.weight.copy_(torch.where(norm > 0, rescaled, linear.weight))
        self._before = []

    def lr_factor(self, step: int, steps: int) -> float:
        free, warmup = self.config.free(steps), self.config.warmup(steps)
        # Without a free phase, the schedule's own warm-up already covers the start.
        return min(1.0, (step - free + 1) / warmup) if 0 < free <= step and warmup else 1.0


@REPARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LAWNConfig(ReparametrizationConfig):
    """After a free phase, the norms of MLPs and head are frozen. Our interpretation of LAWN, Gupta et al. 2021.

    From then on, only the directions of these matrices are trained; the module docstring lists the steps. They
    never decay, whatever optimizer.decay says; all other tensors do.
    """

    name: Literal["lawn"] = "lawn"
    free_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Length of the free phase as a fraction of all steps."""
    free_steps: Annotated[int, Field(ge=0)] | None = None
    """Length of the free phase in steps. Overrides free_fraction."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Linear warm-up at the start of the constrained phase, as a fraction of all steps. Multiplies the schedule."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Length of that warm-up in steps. Overrides warmup_fraction."""
    attention: bool = False
    """Also constrain the matrices of attention."""

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
