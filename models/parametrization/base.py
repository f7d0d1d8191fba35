"""What a parametrization is, and `standard`. Every file in this folder is imported: a choice registers itself there.

A parametrization is a table, a row for each kind of tensor; everything else follows from the table. It multiplies what
the init axis, the schedule and the optimizer give.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
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
Sublayer = Literal["attention", "mlp"]
SUBLAYERS: tuple[Sublayer, ...] = ("attention", "mlp")
MIXER_ROLES: tuple[Role, ...] = ("query", "key", "value", "out")


@dataclasses.dataclass(frozen=True)
class TensorScaling:
    """What a parametrization does with one tensor; each factor multiplies what the other axes give."""

    init: float = 1.0
    """Of the standard deviation that the table refers to, by default the init axis's; 0 starts at zero."""
    multiplier: float = 1.0
    """Of what the layer that owns a matrix puts out."""
    lr: float = 1.0
    """Of the learning rate. Independent weight decay doesn't follow it, coupled decay does."""
    decay: float = 1.0
    """Of the coefficient of coupled weight decay, next to `lr`: published tables have it to make up for the LR that
    decay is multiplied with. Independent decay isn't, and follows neither: s_t lambda for every tensor."""
    eps: float = 1.0
    """Of the optimizer's epsilon."""
    decays: bool = True
    """Whether weight decay acts, in any mode; False where a reparametrization takes its place."""
    least_rms: float | None = None
    """Where given, the LR is also multiplied, at each step, by the RMS of the weights or by this if it is larger."""

    def decay_in(self, mode: str) -> float:
        """What multiplies the coefficient of weight decay in this mode, `independent` or `coupled`."""
        return 0.0 if not self.decays else self.decay if mode == "coupled" else 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A parameter of a model: its full name, itself, its kind, the module that owns it."""

    name: str
    parameter: nn.Parameter
    kind: Kind
    module: nn.Module

    @property
    def role(self) -> Role | None:
        """That of a matrix."""
        return self.module.role if isinstance(self.module, Linear) else None

    @property
    def in_block(self) -> bool:
        return self.name.startswith("blocks.")


@dataclasses.dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Parameters of one kind that an optimizer treats alike."""

    parameters: Sequence[nn.Parameter]
    kind: Kind = "vector"
    scaling: TensorScaling = TensorScaling()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ParametrizationConfig(Choice):
    name: str
    scales = True  # whether it multiplies anything
    scales_with_width = True  # whether it has factors of the width, which stands for every fan-in
    scales_logits_alone = False  # whether the scale of attention's logits is all that it sets
    scales_with_depth = False  # whether it has factors that hold the effect of the number of blocks
    sets_std = False  # whether the std of the initial weights is the table's, not the init axis's at this width

    def scaling(self, tensor: Tensor, size: SizeConfig) -> TensorScaling:
        """The row of the table for this tensor."""
        return TensorScaling()

    def reference_std(self, tensor: Tensor, size: SizeConfig, init: InitConfig) -> float | None:
        """The std that `TensorScaling.init` multiplies; None where the init axis draws before it knows."""
        return initial_std(tensor, size, init)

    def matrix_scalings(self, size: SizeConfig) -> dict[str, TensorScaling]:
        """The rows of the matrices that every model has, without a model: for axes that clash with some scaling."""
        roles: dict[str, Role] = {f"blocks.0.attention.{role}": role for role in MIXER_ROLES}
        roles |= {"blocks.0.mlp.up": "activated", "blocks.0.mlp.down": "down"}

        def row(name: str, kind: Kind, role: Role | None) -> TensorScaling:
            with torch.device("meta"):
                module = Linear(size.width, size.width, role)
            return self.scaling(Tensor(f"{name}.weight", cast(nn.Parameter, module.weight), kind, module), size)

        return {name: row(name, "hidden", role) for name, role in roles.items()} | {"head": row("head", "head", None)}

    def zero_queries(self, size: SizeConfig) -> bool:
        """Whether queries start at zero."""
        return self.matrix_scalings(size)["blocks.0.attention.query"].init == 0

    def attention_scale(self, head_dim: int) -> float:
        """What multiplies q k^T."""
        return 1 / math.sqrt(head_dim)

    def branch_scale(self, size: SizeConfig, sublayer: Sublayer) -> float:
        """What multiplies the output of each sublayer before it joins the residual stream."""
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
                    f"{axis}={choice.name} has matrices of a fan-in that doesn't follow the width, which "
                    f"parametrization={self.name} takes for granted: use parametrization=standard or {axis}={instead}"
                )
        head_dim, qk_norm = config.model.head_dim, config.qk_norm
        if qk_norm.sets_logit_scale and not math.isclose(self.attention_scale(head_dim), head_dim**-0.5):
            raise ValueError(
                f"parametrization={self.name} and qk_norm={qk_norm.name} both set the scale of attention's logits: "
                f"use qk_norm=layernorm or parametrization=mup_simple"
            )


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


def initial_std(tensor: Tensor, size: SizeConfig, init: InitConfig, width_ratio: float = 1.0) -> float | None:
    """What the init axis gives a tensor, or would at width / width_ratio; 1 for vectors, which it leaves alone.

    Both sides of a hidden matrix follow the width; embedding and head have one that does, the other is the vocabulary.
    """
    if tensor.kind == "vector":
        return 1.0
    fan_out, fan_in = tensor.parameter.shape
    if tensor.kind == "embedding":
        return init.embedding_std(fan_in / width_ratio)
    rows = fan_out / (width_ratio if tensor.kind == "hidden" else 1.0)
    return init.matrix_std(rows, fan_in / width_ratio, where(tensor.name, size.depth, tensor.module))


def init_scale(config: ParametrizationConfig, tensor: Tensor, size: SizeConfig, init: InitConfig) -> float:
    """What multiplies the weights that the init axis has drawn, so that the table's std comes out."""
    reference, drawn = config.reference_std(tensor, size, init), initial_std(tensor, size, init)
    factor = config.scaling(tensor, size).init
    return factor if reference is None or drawn is None else factor * (reference / drawn)


def set_multipliers(config: ParametrizationConfig, model: nn.Module, size: SizeConfig) -> None:
    for tensor in tensors(model):
        if isinstance(tensor.module, Linear | Embedding):
            tensor.module.multiplier = config.scaling(tensor, size).multiplier


@torch.no_grad()
def scale_init(config: ParametrizationConfig, model: nn.Module, size: SizeConfig, init: InitConfig) -> None:
    """Multiplies the weights that the init axis has drawn."""
    for tensor in tensors(model):
        factor = init_scale(config, tensor, size, init)
        if factor != 1.0:
            tensor.parameter.mul_(factor)


def scaling_of(config: ParametrizationConfig, tensor: Tensor, size: SizeConfig) -> TensorScaling:
    """The row of the table as the optimizer gets it."""
    return dataclasses.replace(config.scaling(tensor, size), decays=getattr(tensor.module, "decays", True))


def groups(config: ParametrizationConfig, model: nn.Module, size: SizeConfig) -> list[ParameterGroup]:
    """The parameters by kind and scaling, each exactly once."""
    found: dict[tuple[Kind, TensorScaling], list[nn.Parameter]] = {}
    for tensor in tensors(model):
        found.setdefault((tensor.kind, scaling_of(config, tensor, size)), []).append(tensor.parameter)
    return [ParameterGroup(parameters, kind, scaling) for (kind, scaling), parameters in found.items()]


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Standard(ParametrizationConfig):
    """One learning rate for all tensors, attention scale 1/sqrt(head_dim). Wortsman et al. 2023, section 2.1."""

    name: Literal["standard"] = "standard"
    scales = False
    scales_with_width = False
