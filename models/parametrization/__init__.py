"""The `parametrization` axis: how init, multipliers, LR, decay and epsilon depend on size; one file per family."""

from models.parametrization.base import (
    PARAMETRIZATION,
    Kind,
    ParameterGroup,
    ParametrizationConfig,
    Tensor,
    TensorPart,
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
    "TensorPart",
    "TensorScaling",
    "groups",
    "scale_init",
    "scaling_of",
    "set_multipliers",
    "tensors",
]
