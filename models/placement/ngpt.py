"""nGPT: the residual stream, the embeddings and the vectors that make up all matrices have unit norm.

    h <- norm(h + |a| (norm(F(h)) - h)),  norm(x) = x / |x|

Loshchilov et al. 2024 (nGPT, arXiv 2410.01131), eqs. 10 and 11; NVIDIA/ngpt, `model.py` and `train.py`. This update of
the stream replaces all norms and the residual sum. The other parts:

    q, k     s_qk norm(q), s_qk norm(k) after the positions; logits sqrt(head_dim) q k^T
    MLP      silu(s_v sqrt(D) v) * (s_u u); without a gate phi(s_v sqrt(D) v)
    logits   s_z z, applied to the head's rows, so that losses see the scaled head
    weights  the vectors along the embedding dimension of every matrix have norm 1, at the start and after each step

The paper has SwiGLU. The authors' code also scales u by sqrt(D), which norm(F(h)) cancels.
"""

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.layers import Embedding, Linear, Role
from models.norms import NormConfig
from models.placement.base import PLACEMENT, Placement, PlacementConfig, Site, Sublayer

if TYPE_CHECKING:
    from models.architecture import Architecture


class Scale(nn.Module):
    """Returns s = weight * init / scaling, where the weight starts at `scaling` (section 2.5).

    s starts at `init`. Optimizers like Adam move the weight by about the LR, and thus s by LR * init / scaling.
    """

    def __init__(self, size: int, init: float, scaling: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), scaling))
        self.factor = init / scaling

    def forward(self) -> torch.Tensor:
        return self.weight * self.factor


class NGPT(Placement):
    def __init__(self, width: int, alpha: float, scale: nn.Module | None = None) -> None:
        super().__init__(scale)
        self.alpha = Scale(width, alpha, width**-0.5)

    def forward(self, x_BTD: torch.Tensor, sublayer: Sublayer) -> torch.Tensor:
        branch_BTD = F.normalize(sublayer(x_BTD).float(), dim=-1)
        x_BTD = F.normalize(x_BTD.float(), dim=-1)
        return F.normalize(x_BTD + self.alpha().abs() * (branch_BTD - x_BTD), dim=-1)


class UnitQK(nn.Module):
    """Normalizes q and k to unit norm and multiplies both by one s_qk, [H, K]."""

    def __init__(self, heads: int, width: int, init: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = Scale(width, init, width**-0.5)

    def forward(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale_H1K = self.scale().unflatten(0, (self.heads, 1, -1))
        q_BHTK, k_BHTK = F.normalize(q_BHTK.float(), dim=-1), F.normalize(k_BHTK.float(), dim=-1)
        return scale_H1K * q_BHTK, scale_H1K * k_BHTK


class ScaledOutput(Linear):
    """Computes factor * s * W x."""

    def __init__(self, fan_in: int, fan_out: int, role: Role, init: float, factor: float) -> None:
        super().__init__(fan_in, fan_out, role)
        self.scale = Scale(fan_out, init, 1.0)
        self.factor = factor

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        y_BTF = super().forward(x_BTD)
        return (self.factor * self.scale() * y_BTF).to(y_BTF.dtype)


class ScaledRows(nn.Module):
    """Computes s_n W_n for each row n."""

    def __init__(self, rows: int, init: float, scaling: float) -> None:
        super().__init__()
        self.scale = Scale(rows, init, scaling)

    def forward(self, weight_ND: torch.Tensor) -> torch.Tensor:
        return self.scale()[:, None] * weight_ND


Start = Annotated[float, Field(gt=0)]


@PLACEMENT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NGPTConfig(PlacementConfig):
    """h <- norm(h + |a| (norm(F(h)) - h)), with unit vectors in all matrices and learned scales in place of norms.

    Loshchilov et al. 2024 (nGPT, arXiv 2410.01131; NVIDIA/ngpt). Only directions of the initial weights matter. The
    optimizer's weight decay still acts. Renormalization restores the norms of matrices, so there decay only increases
    the angle of a step by 1 / (1 - decay). But it pulls a, s_qk, s_uv and s_z to zero. The authors train with
    `optimizer.decay=none schedule.warmup_fraction=0`.
    """

    name: Literal["ngpt"] = "ngpt"
    wraps_projections = True
    sets_weights_each_step = True
    final_norm = False
    alpha: Start = 0.05
    """Initial a, the step size from the stream towards the sublayer's output; about 1 / blocks. Section 2.6."""
    s_qk: Start = 1.0
    """Initial scale of unit queries and keys. Section 2.6."""
    s_uv: Start = 1.0
    """Initial scale of the input of the MLP's non-linearity. Section 2.6."""
    s_z: Start = 1.0
    """Initial scale of the output logits; NVIDIA/ngpt."""

    def build(self, norm: NormConfig, site: Site, scale: nn.Module | None = None) -> Placement:
        return NGPT(site.width, self.alpha, scale)

    def attention_scale(self, head_dim: int, scale: float) -> float:
        return math.sqrt(head_dim)

    def projection(self, role: Role, fan_in: int, fan_out: int, norm: NormConfig, head_dim: int) -> Linear:
        match role:
            case "activated":
                return ScaledOutput(fan_in, fan_out, role, self.s_uv, math.sqrt(fan_in))
            case "multiplied":
                return ScaledOutput(fan_in, fan_out, role, self.s_uv, 1.0)
        return Linear(fan_in, fan_out, role)

    def after_positions(self, width: int, heads: int) -> nn.Module:
        return UnitQK(heads, width, self.s_qk)

    def head_map(self, width: int, vocab_size: int) -> nn.Module:
        return ScaledRows(vocab_size, self.s_z, width**-0.5)

    @torch.no_grad()
    def constrain(self, model: Any) -> None:
        for module in model.modules():
            if isinstance(module, Linear | Embedding):
                # The embedding dimension is a matrix's input, except for the last of a sublayer, whose output it is.
                along = 0 if isinstance(module, Linear) and module.writes_stream else 1
                module.weight.copy_(F.normalize(module.weight, dim=along))

    def fits(self, config: "Architecture") -> None:
        def refuse(why: str, use: str) -> None:
            raise ValueError(f"placement=ngpt {why}: use {use} or placement=pre")

        if config.norm.normalizes:
            refuse(f"has no norm layers, but norm={config.norm.name} asks for them", "norm=none")
        if config.qk_norm.normalizes:
            refuse(f"already normalizes q and k, and so does qk_norm={config.qk_norm.name}", "qk_norm=none")
        if config.parametrization.scales:
            refuse(
                f"sets scales of matrices, logits and learning rates, and so does "
                f"parametrization={config.parametrization.name}",
                "parametrization=standard",
            )
        if config.position.adds_to_embedding:
            refuse(f"starts from unit embeddings, but position={config.position.name} adds to them", "position=rope")
        if not config.layout.faces_stream:
            raise ValueError(
                f"layout={config.layout.name} has matrices that neither read nor write the stream, but placement=ngpt "
                f"constrains vectors of the stream: use placement=pre or layout=mha"
            )
        if config.layer_scale is not None:
            refuse(
                f"has learned steps towards a sublayer's normalized output, which cancels "
                f"layer_scale={config.layer_scale:g}",
                "layer_scale=null",
            )
