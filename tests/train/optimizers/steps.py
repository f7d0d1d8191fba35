"""Applies optimizers to single tensors, as the training loop does."""

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
    scaling: TensorScaling = PLAIN,
) -> list[torch.Tensor]:
    """Returns the parameter after each step. As in training, the LR is peak times schedule factor times lr_scale."""
    parameter = nn.Parameter(start.clone())
    made = config.build([ParameterGroup([parameter], kind, scaling)])
    found = []
    for gradient, factor in zip(gradients, factors or [1.0] * len(gradients), strict=True):
        parameter.grad = gradient.clone()
        for group in made.param_groups:
            group["lr"] = config.lr * factor * group["lr_scale"]
        made.step()
        found.append(parameter.detach().clone())
    return found


def updated(*given: Any, **more: Any) -> torch.Tensor:
    """Returns the parameter after the last step."""
    return trace(*given, **more)[-1]


def scalars(values: list[float]) -> list[torch.Tensor]:
    return [torch.tensor([v], dtype=torch.float64) for v in values]
