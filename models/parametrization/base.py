"""The base class of parametrizations, and `standard`. Every file in this folder is imported and registers its choices.

A parametrization is a table with one row per kind of tensor. Its entries multiply the values of the init axis, the
schedule and the optimizer.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, cast

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice, axes, chosen
from models.init import InitConfig, where
from models.layers import Embedding, Linear, Role
from models.size import SizeConfig

if TYPE_CHECKING:
    from models.architecture import Architecture

Kind = Literal["embedding", "hidden", "head", "vector"]
TensorPart = Literal["query_key", "value_out", "mlp_in", "mlp_out"]
PARTS: dict[Role, TensorPart] = {
    "query": "query_key", "key": "query_key", "value": "value_out", "out": "value_out", "activated": "mlp_in",
    "multiplied": "mlp_in", "down": "mlp_out",
}  # fmt: skip
NO_FACTORS: Mapping[str, float] = MappingProxyType({})
Sublayer = Literal["attention", "mlp"]
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "mlp")
MIXER_ROLES: tuple[Role, ...] = ("query", "key", "value", "out")


@dataclasses.dataclass(frozen=True)
class TensorScaling:
    """A row of the table: the factors for one tensor, which multiply the values of the other axes."""

    init: float = 1.0
    """Factor of the reference std, by default the init axis's. 0 initializes at zero."""
    multiplier: float = 1.0
    """Factor of the output of the layer that owns the matrix."""
    lr: float = 1.0
    """Factor of the learning rate. It also affects coupled weight decay, but not independent decay."""
    decay: float = 1.0
    """Factor of the coefficient of coupled weight decay, in addition to `lr`. Published tables use it to undo the LR's
    factor. Independent decay ignores both factors: it is s_t lambda for every tensor."""
    eps: float = 1.0
    """Factor of the optimizer's epsilon."""
    decays: bool = True
    """Whether weight decay acts, in any mode. False if a reparametrization replaces it."""
    least_rms: float | None = None
    """If set, each step also multiplies the LR by the RMS of the weights or this value, whichever is larger."""

    def decay_in(self, mode: str) -> float:
        """Returns the factor of the weight-decay coefficient in mode `independent` or `coupled`."""
        return 0.0 if not self.decays else self.decay if mode == "coupled" else 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A parameter of a model with its full name, its kind and the module that owns it."""

    name: str
    parameter: nn.Parameter
    kind: Kind
    module: nn.Module

    @property
    def role(self) -> Role | None:
        """Returns the role of a matrix; None for other parameters."""
        return self.module.role if isinstance(self.module, Linear) else None

    @property
    def part(self) -> TensorPart | None:
        """Returns what a hidden matrix does in its block; None for other tensors and for a matrix without a role."""
        return PARTS.get(self.role) if self.kind == "hidden" and self.role else None

    @property
    def routes(self) -> bool:
        """Returns whether this is the matrix of a router of mlp=moe."""
        return self.role == "router"

    @property
    def in_block(self) -> bool:
        return self.name.startswith("blocks.")


@dataclasses.dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Parameters of one kind that an optimizer treats alike."""

    parameters: Sequence[nn.Parameter]
    kind: Kind = "vector"
    scaling: TensorScaling = TensorScaling()
    routers: Sequence[nn.Parameter] = ()
    """Those of the parameters that are matrices of routers."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ParametrizationConfig(Choice):
    name: str
    scales = True  # whether it multiplies anything
    scales_with_width = True  # whether it has factors of the width, which it takes to represent every fan-in
    scales_logits_alone = False  # whether it sets only the scale of attention logits
    scales_with_depth = False  # whether it compensates for the number of blocks
    sets_std = False  # whether the table, not the init axis at this width, sets the std of initial weights

    def scaling(self, tensor: Tensor, size: SizeConfig) -> TensorScaling:
        """Returns the table's row for this tensor."""
        return TensorScaling()

    def reference_std(self, tensor: Tensor, size: SizeConfig, init: InitConfig) -> float | None:
        """Returns the std that `TensorScaling.init` multiplies; None if init and weights do not determine it."""
        return initial_std(tensor, size, init)

    def matrix_scalings(self, size: SizeConfig) -> dict[str, TensorScaling]:
        """Returns the rows of the matrices that every model has, for compatibility checks that have no model yet."""
        roles: dict[str, Role] = {f"blocks.0.attention.{role}": role for role in MIXER_ROLES}
        roles |= {"blocks.0.mlp.up": "activated", "blocks.0.mlp.down": "down"}

        def row(name: str, kind: Kind, role: Role | None) -> TensorScaling:
            with torch.device("meta"):
                module = Linear(size.width, size.width, role)
            return self.scaling(Tensor(f"{name}.weight", cast(nn.Parameter, module.weight), kind, module), size)

        return {name: row(name, "hidden", role) for name, role in roles.items()} | {"head": row("head", "head", None)}

    def zero_queries(self, size: SizeConfig) -> bool:
        """Returns whether queries start at zero."""
        return self.matrix_scalings(size)["blocks.0.attention.query"].init == 0

    def attention_scale(self, head_dim: int) -> float:
        """Returns the factor of q k^T."""
        return 1 / math.sqrt(head_dim)

    def branch_scale(self, size: SizeConfig, sublayer: Sublayer) -> float:
        """Returns the factor of each sublayer's output, before it is added to the residual stream."""
        return 1.0

    def fits(self, config: "Architecture") -> None:
        init, placement = config.init, config.placement
        if self.sets_std and init.matrix_std(1, 1, where("head", 1)) is None:
            raise ValueError(
                f"parametrization={self.name} sets the std of the initial weights, and so does init={init.name} from "
                f"data: use init=paper or parametrization=standard"
            )
        if self.scales_with_depth and init.scales_with_depth:
            raise ValueError(
                f"parametrization={self.name} has its own factors of depth, and init={init.name} scales the initial "
                f"weights with depth: use init=normal or parametrization=mup"
            )
        if self.scales_with_depth and placement.scales_with_depth:
            raise ValueError(
                f"parametrization={self.name} has its own factors of depth, and so has placement={placement.name}: "
                f"use placement=pre or parametrization=mup"
            )
        for axis, choice in chosen(config):
            if self.scales_with_width and not choice.fan_in_follows_width:
                others = axes(type(config))[axis].choices
                instead = next(name for name, other in others.items() if other.fan_in_follows_width)
                raise ValueError(
                    f"{axis}={choice.name} has matrices whose fan-in does not follow the width, but "
                    f"parametrization={self.name} assumes it: use parametrization=standard or {axis}={instead}"
                )
        head_dim, qk_norm = config.model.head_dim, config.qk_norm
        if qk_norm.sets_logit_scale and not math.isclose(self.attention_scale(head_dim), head_dim**-0.5):
            raise ValueError(
                f"parametrization={self.name} and qk_norm={qk_norm.name} both set the scale of attention's logits: "
                f"use qk_norm=layernorm or parametrization=mup_simple"
            )


PARAMETRIZATION: Axis[ParametrizationConfig] = Axis("parametrization")


def kind_of(module: nn.Module, name: str) -> Kind:
    """Returns the kind of a module's weight from its type; `name` tells the head from other matrices."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Linear):
        return "head" if name == "head" else "hidden"
    return "vector"


def tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yields every parameter once."""
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield Tensor(f"{prefix}.{name}".lstrip("."), parameter, kind_of(module, prefix), module)


def initial_std(tensor: Tensor, size: SizeConfig, init: InitConfig, width_ratio: float = 1.0) -> float | None:
    """Returns the std that the init axis gives a tensor at width / width_ratio; 1 for vectors, which it skips.

    Most hidden matrices scale with the width on both sides, embedding and head on one side; their other is the
    vocabulary.
    """
    if tensor.kind == "vector":
        return 1.0
    fan_out, fan_in = tensor.parameter.shape
    if tensor.kind == "embedding":
        return init.embedding_std(fan_in / width_ratio)
    follow = isinstance(tensor.module, Linear) and tensor.kind == "hidden" and tensor.module.rows_follow_width
    rows = fan_out / (width_ratio if follow else 1.0)
    return init.matrix_std(rows, fan_in / width_ratio, where(tensor.name, size.depth, tensor.module))


def init_scale(config: ParametrizationConfig, tensor: Tensor, size: SizeConfig, init: InitConfig) -> float:
    """Returns the factor that brings weights drawn by the init axis to the table's std; for those with a scale of their
    own, the factor that undoes the multiplier."""
    if isinstance(tensor.module, Linear) and tensor.module.own_scale:
        return 1 / config.scaling(tensor, size).multiplier
    reference, drawn = config.reference_std(tensor, size, init), initial_std(tensor, size, init)
    factor = config.scaling(tensor, size).init
    return factor if reference is None or drawn is None else factor * (reference / drawn)


def set_multipliers(config: ParametrizationConfig, model: nn.Module, size: SizeConfig) -> None:
    for tensor in tensors(model):
        if isinstance(tensor.module, Linear | Embedding):
            tensor.module.multiplier = config.scaling(tensor, size).multiplier


@torch.no_grad()
def scale_init(config: ParametrizationConfig, model: nn.Module, size: SizeConfig, init: InitConfig) -> None:
    """Multiplies the weights drawn by the init axis."""
    for tensor in tensors(model):
        factor = init_scale(config, tensor, size, init)
        if factor != 1.0:
            tensor.parameter.mul_(factor)


def scaling_of(
    config: ParametrizationConfig, tensor: Tensor, size: SizeConfig, factors: Mapping[str, float] = NO_FACTORS
) -> TensorScaling:
    """Returns the table's row for the optimizer, which includes whether the layer decays.

    `factors` multiply the LR of a tensor's kind and of its part.
    """
    row = config.scaling(tensor, size)
    lr = row.lr * factors.get(tensor.kind, 1.0) * factors.get(tensor.part or "", 1.0)
    return dataclasses.replace(row, lr=lr, decays=getattr(tensor.module, "decays", True))


def groups(
    config: ParametrizationConfig, model: nn.Module, size: SizeConfig, factors: Mapping[str, float] = NO_FACTORS
) -> list[ParameterGroup]:
    """Groups the parameters by kind and scaling, each exactly once. `factors` are those of `scaling_of`."""
    found: dict[tuple[Kind, TensorScaling], list[Tensor]] = {}
    for tensor in tensors(model):
        scaling = scaling_of(config, tensor, size, factors)
        found.setdefault((tensor.kind, scaling), []).append(tensor)
    return [
        ParameterGroup([t.parameter for t in alike], kind, scaling, [t.parameter for t in alike if t.routes])
        for (kind, scaling), alike in found.items()
    ]


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Standard(ParametrizationConfig):
    """One learning rate for all tensors, attention scale 1/sqrt(head_dim). Wortsman et al. 2023, section 2.1."""

    name: Literal["standard"] = "standard"
    scales = False
    scales_with_width = False
