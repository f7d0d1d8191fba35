"""The `parametrization` axis: how init, multipliers, LR, decay and epsilon follow the model's size; a file a family."""

from models.parametrization.base import (
    PARAMETRIZATION,
    Kind,
    ParameterGroup,
    ParametrizationConfig,
    Tensor,
    TensorScaling,
    groups,
    scale_init,
    scaling_of,
    set_multipliers,
    tensors,
)

__all__ = [
    "PARAMETRIZATION",
    "Kind",
    "ParameterGroup",
    "ParametrizationConfig",
    "Tensor",
    "TensorScaling",
    "groups",
    "scale_init",
    "scaling_of",
    "set_multipliers",
    "tensors",
]
