"""Parametrizations, the `parametrization` axis: how init, learning rate and attention scale depend on width.

A parametrization is a table, a row for each kind of tensor; everything else follows from the table. It multiplies what
the init axis and the schedule give.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis

Kind = Literal["embedding", "hidden", "head", "vector"]


@dataclass(frozen=True)
class Rule:
    """What a parametrization does with one tensor."""

    init: float = 1.0
    """Multiplies the standard deviation of the init axis; 0 starts at zero."""
    lr: float = 1.0
    """Multiplies the learning rate. Independent weight decay doesn't follow it, coupled decay does."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ParametrizationConfig:
    name: str

    def rule(self, kind: Kind, name: str, width: int) -> Rule:
        """The row of the table for a tensor of this kind; `name` is its name in the model."""
        return Rule()

    def attention_scale(self, head_dim: int) -> float:
        """What multiplies q k^T."""
        return 1 / math.sqrt(head_dim)


PARAMETRIZATION: Axis[ParametrizationConfig] = Axis("parametrization")


def kind_of(module: nn.Module, name: str) -> Kind:
    """The kind of a module's weight, from its type; `name` tells the head from other matrices."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Linear):
        return "head" if name == "head" else "hidden"
    return "vector"


def tensors(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Kind]]:
    """Every parameter once: its full name, itself, its kind."""
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield f"{prefix}.{name}".lstrip("."), parameter, kind_of(module, prefix)


@torch.no_grad()
def scale_init(config: ParametrizationConfig, model: nn.Module, width: int) -> None:
    """Multiplies the weights that the init axis has drawn."""
    for name, parameter, kind in tensors(model):
        rule = config.rule(kind, name, width)
        if rule.init != 1.0:
            parameter.mul_(rule.init)


def lr_groups(config: ParametrizationConfig, model: nn.Module, width: int) -> dict[float, list[nn.Parameter]]:
    """The parameters by the multiplier of their learning rate, each exactly once."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter, kind in tensors(model):
        groups.setdefault(config.rule(kind, name, width).lr, []).append(parameter)
    return groups


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Standard(ParametrizationConfig):
    """One learning rate for all tensors, attention scale 1/sqrt(head_dim). Wortsman et al. 2023, section 2.1."""

    name: Literal["standard"] = "standard"


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MuPSimple(ParametrizationConfig):
    """(i) The LR of linear layers times base fan-in / fan-in. Wortsman et al. 2023, section 3.2.4 and Fig. 8.

    Linear layers are all matrices but the embedding, the head among them, as "kernels" are in NanoDO. Fan-ins are
    proportional to the width, so that the factor is base_width / width for each.
    """

    name: Literal["mup_simple"] = "mup_simple"
    base_width: Annotated[int, Field(ge=1)] = 256
    """Width at which this is the standard parametrization; 256 is the paper's smallest model."""

    def rule(self, kind: Kind, name: str, width: int) -> Rule:
        return Rule(lr=self.base_width / width) if kind in ("hidden", "head") else Rule()


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MuPIntermediate(MuPSimple):
    """(i) and (ii) the head's initial std sqrt(base fan-in) / fan-in. Wortsman et al. 2023, Fig. E.5."""

    name: Literal["mup_intermediate"] = "mup_intermediate"  # type: ignore[assignment]

    def rule(self, kind: Kind, name: str, width: int) -> Rule:
        rule = super().rule(kind, name, width)
        return Rule(lr=rule.lr, init=math.sqrt(self.base_width / width)) if kind == "head" else rule


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MuPFull(MuPIntermediate):
    """(i), (ii), (iii) attention scale 1/head_dim and (iv) query projections that start at zero.

    Wortsman et al. 2023, Fig. E.5. The scale is the paper's, 1/head_dim without a factor that restores
    1/sqrt(head_dim) at a base.
    """

    name: Literal["mup_full"] = "mup_full"  # type: ignore[assignment]

    def rule(self, kind: Kind, name: str, width: int) -> Rule:
        rule = super().rule(kind, name, width)
        return Rule(lr=rule.lr, init=0.0) if name.endswith("attention.query.weight") else rule

    def attention_scale(self, head_dim: int) -> float:
        return 1 / head_dim
