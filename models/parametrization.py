"""Parametrizations, the `parametrization` axis: how init, multipliers, LR, decay and epsilon follow the model's size.

A parametrization is a table, a row for each kind of tensor; everything else follows from the table. It multiplies what
the init axis, the schedule and the optimizer give.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.layers import Embedding, Linear
from models.size import SizeConfig

Kind = Literal["embedding", "hidden", "head", "vector"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a parametrization does with one tensor; each factor multiplies what the other axes give."""

    init: float = 1.0
    """Of the standard deviation of the init axis; 0 starts at zero."""
    multiplier: float = 1.0
    """Of what the layer that owns a matrix puts out."""
    lr: float = 1.0
    """Of the learning rate. Independent weight decay doesn't follow it, coupled decay does."""
    decay: float = 1.0
    """Of the coefficient of weight decay, in either mode."""
    eps: float = 1.0
    """Of the optimizer's epsilon."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A parameter of a model: its full name, itself, its kind, the module that owns it."""

    name: str
    parameter: nn.Parameter
    kind: Kind
    module: nn.Module

    @property
    def in_block(self) -> bool:
        return self.name.startswith("blocks.")


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Parameters of one kind that an optimizer treats alike."""

    parameters: Sequence[nn.Parameter]
    kind: Kind = "vector"
    rule: Rule = Rule()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ParametrizationConfig(Choice):
    name: str

    def rule(self, tensor: Tensor, size: SizeConfig) -> Rule:
        """The row of the table for this tensor."""
        return Rule()

    def attention_scale(self, head_dim: int) -> float:
        """What multiplies q k^T."""
        return 1 / math.sqrt(head_dim)

    def branch_scale(self, size: SizeConfig) -> float:
        """What multiplies the output of each sublayer before it joins the residual stream."""
        return 1.0


PARAMETRIZATION: Axis[ParametrizationConfig] = Axis("parametrization")


def kind_of(module: nn.Module, name: str) -> Kind:
    """The kind of a module's weight, from its type; `name` tells the head from other matrices."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Linear):
        return "head" if name == "head" else "hidden"
    return "vector"


def tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every parameter once."""
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield Tensor(f"{prefix}.{name}".lstrip("."), parameter, kind_of(module, prefix), module)


def rules_of_matrices(config: ParametrizationConfig, size: SizeConfig) -> dict[str, Rule]:
    """The rules of the matrices that every model has, without a model: for axes that clash with some rule."""
    with torch.device("meta"):
        module = Linear(size.width, size.width)
    weight = nn.Parameter(module.weight)
    attention = [f"blocks.0.attention.{name}" for name in ("query", "key", "value", "out")]
    kinds: dict[str, Kind] = dict.fromkeys((*attention, "blocks.0.mlp.up", "blocks.0.mlp.down"), "hidden")
    kinds["head"] = "head"
    return {name: config.rule(Tensor(f"{name}.weight", weight, kind, module), size) for name, kind in kinds.items()}


def set_multipliers(config: ParametrizationConfig, model: nn.Module, size: SizeConfig) -> None:
    for tensor in tensors(model):
        if isinstance(tensor.module, Linear | Embedding):
            tensor.module.multiplier = config.rule(tensor, size).multiplier


@torch.no_grad()
def scale_init(config: ParametrizationConfig, model: nn.Module, size: SizeConfig) -> None:
    """Multiplies the weights that the init axis has drawn."""
    for tensor in tensors(model):
        rule = config.rule(tensor, size)
        if rule.init != 1.0:
            tensor.parameter.mul_(rule.init)


def rule_of(config: ParametrizationConfig, tensor: Tensor, size: SizeConfig) -> Rule:
    """The row of the table as the optimizer gets it: without decay where a reparametrization takes its place."""
    rule = config.rule(tensor, size)
    return rule if getattr(tensor.module, "decays", True) else dataclasses.replace(rule, decay=0.0)


def groups(config: ParametrizationConfig, model: nn.Module, size: SizeConfig) -> list[Group]:
    """The parameters by kind and rule, each exactly once."""
    found: dict[tuple[Kind, Rule], list[nn.Parameter]] = {}
    for tensor in tensors(model):
        found.setdefault((tensor.kind, rule_of(config, tensor, size)), []).append(tensor.parameter)
    return [Group(parameters, kind, rule) for (kind, rule), parameters in found.items()]


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

    def rule(self, tensor: Tensor, size: SizeConfig) -> Rule:
        return Rule(lr=self.base_width / size.width) if tensor.kind in ("hidden", "head") else Rule()


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MuPIntermediate(MuPSimple):
    """(i) and (ii) the head's initial std sqrt(base fan-in) / fan-in. Wortsman et al. 2023, Fig. E.5."""

    name: Literal["mup_intermediate"] = "mup_intermediate"  # type: ignore[assignment]

    def rule(self, tensor: Tensor, size: SizeConfig) -> Rule:
        init = math.sqrt(self.base_width / size.width) if tensor.kind == "head" else 1.0
        return dataclasses.replace(super().rule(tensor, size), init=init)


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MuPFull(MuPIntermediate):
    """(i), (ii), (iii) attention scale 1/head_dim and (iv) query projections that start at zero.

    Wortsman et al. 2023, Fig. E.5. The scale is the paper's, 1/head_dim without a factor that restores
    1/sqrt(head_dim) at a base.
    """

    name: Literal["mup_full"] = "mup_full"  # type: ignore[assignment]

    def rule(self, tensor: Tensor, size: SizeConfig) -> Rule:
        rule = super().rule(tensor, size)
        return dataclasses.replace(rule, init=0.0) if tensor.name.endswith("attention.query.weight") else rule

    def attention_scale(self, head_dim: int) -> float:
        return 1 / head_dim
