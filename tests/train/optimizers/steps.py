"""Updates of single tensors, as the training loop makes them."""

from typing import Any

import torch
from torch import nn

from models.parametrization import Kind, ParameterGroup, TensorScaling
from tests.conftest import choice
from train.optimizers import OPTIMIZER, OptimizerConfig

PLAIN = TensorScaling()
NAMES = sorted(OPTIMIZER.choices)


def optimizer(name: str, **changes: Any) -> Any:
    return choice(OPTIMIZER, name, **changes)


def trace(
    config: OptimizerConfig,
    start: torch.Tensor,
    gradients: list[torch.Tensor],
    factors: list[float] | None = None,
    kind: Kind = "hidden",
    rule: TensorScaling = PLAIN,
) -> list[torch.Tensor]:
    """The parameter after each step, the LR set as the loop sets it: peak times factor times the group's scale."""
    parameter = nn.Parameter(start.clone())
    made = config.build([ParameterGroup([parameter], kind, rule)])
    found = []
    for gradient, factor in zip(gradients, factors or [1.0] * len(gradients), strict=True):
        parameter.grad = gradient.clone()
        for group in made.param_groups:
            group["lr"] = config.lr * factor * group["lr_scale"]
        made.step()
        found.append(parameter.detach().clone())
    return found


def updated(*given: Any, **more: Any) -> torch.Tensor:
    """The parameter after the last step."""
    return trace(*given, **more)[-1]


def scalars(values: list[float]) -> list[torch.Tensor]:
    return [torch.tensor([v], dtype=torch.float64) for v in values]
