"""The `parametrization` axis: how init, multipliers, LR, decay and epsilon follow the model's size; a file a family."""

from models.parametrization.base import (
    PARAMETRIZATION,
    Group,
    Kind,
    ParametrizationConfig,
    Rule,
    Tensor,
    groups,
    rule_of,
    scale_init,
    set_multipliers,
    tensors,
)

__all__ = [
    "PARAMETRIZATION",
    "Group",
    "Kind",
    "ParametrizationConfig",
    "Rule",
    "Tensor",
    "groups",
    "rule_of",
    "scale_init",
    "set_multipliers",
    "tensors",
]
