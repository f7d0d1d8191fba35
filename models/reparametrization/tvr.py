"""Target variance rescaling, TVR. Owen et al. 2025, "Variance control via weight rescaling in LLM pre-training"."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.reparametrization.base import REPARAMETRIZATION, Reparametrization, ReparametrizationConfig, linears


def rescaled(weight: torch.Tensor, target: float, threshold: float) -> torch.Tensor:
    """Returns (w - mean) / std * target + mean where std > threshold * target, else w; std is the unbiased estimate."""
    std, mean = torch.std_mean(weight)
    return torch.where(std / target > threshold, (weight - mean) / std * target + mean, weight)


class TargetVarianceRescaling(Reparametrization):
    def __init__(self, config: "TVRConfig") -> None:
        super().__init__()
        self.config = config

    def after_step(self, model: Any, step: int, lr: float) -> None:
        config = self.config
        if (step + 1) % config.every:
            return
        for index, block in enumerate(model.blocks):
            target = config.target_std / ((index + 1) ** 0.5 if config.scale_with_depth else 1.0)
            for _, linear in linears(block):
                linear.weight.copy_(rescaled(linear.weight, target, config.threshold))


@REPARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TVRConfig(ReparametrizationConfig):
    """Every few steps, matrices of the blocks whose std exceeds a target are rescaled to it. Owen et al. 2025.

    TVR, as in bluorion-com/weight_rescaling: w <- (w - mean) / std * target + mean; the optimizer's moments are kept.
    Intended for init=lir. A matrix that starts above threshold * target is rescaled at the end of the first interval.
    """

    name: Literal["tvr"] = "tvr"
    pulls = True
    every: Annotated[int, Field(ge=1)] = 50
    """Number of optimizer steps between checks."""
    threshold: Annotated[float, Field(ge=1)] = 1.2
    """Rescale a matrix if its std / target exceeds this."""
    target_std: Annotated[float, Field(gt=0)] = 0.01
    """Target standard deviation. The authors' example; their code's default is 0.02."""
    scale_with_depth: bool = False
    """Divide the target by sqrt(l) in block l = 1 ... L, as init=lir divides the initial std."""

    def build(self, model: Any) -> Reparametrization:
        return TargetVarianceRescaling(self)
