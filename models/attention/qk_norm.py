"""Normalization of queries and keys, the `qk_norm` axis: per head, with parameters shared across heads.

Acts after the projections and before the positions. `layernorm_model` normalizes over all heads; `qkv` includes values.
Shape suffixes: B batch, H heads, T tokens, K head dimension.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.norms import LayerNorm, RMSNorm


class QKTransform(nn.Module):
    def forward(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns transformed queries and keys of the same shapes, before the positions."""
        raise NotImplementedError

    def values(self, v_BHTK: torch.Tensor) -> torch.Tensor:
        return v_BHTK


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class QKNormConfig(Choice):
    name: str
    normalizes = True  # whether it changes queries and keys
    sets_length = False  # whether all it does is to give every query and key of a layer the same length
    steep_at_zero = False  # whether queries that start at zero get a gradient 10^5 times the usual size
    sets_logit_scale = False  # whether it, not the parametrization, sets the scale of logits
    over_heads = False  # whether it needs as many key heads as query heads
    acts_on_values = False

    def build(self, *, heads: int, head_dim: int, context: int) -> QKTransform:
        raise NotImplementedError


QK_NORM: Axis[QKNormConfig] = Axis("qk_norm")


class NoQKNorm(QKTransform):
    def forward(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return q_BHTK, k_BHTK


class QKNorm(QKTransform):
    """q <- norm_q(q), k <- norm_k(k). ViT-22B (Dehghani et al. 2023); per head as in Wortsman et al. 2023, Fig. E.8."""

    def __init__(self, norm_q: nn.Module, norm_k: nn.Module) -> None:
        super().__init__()
        self.query, self.key = norm_q, norm_k

    def forward(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.query(q_BHTK), self.key(k_BHTK)


class OverHeads(LayerNorm):
    """LayerNorm over all H K features of a token."""

    def forward(self, x_BHTK: torch.Tensor) -> torch.Tensor:
        heads = x_BHTK.shape[1]
        return super().forward(x_BHTK.transpose(1, 2).flatten(2)).unflatten(-1, (heads, -1)).transpose(1, 2)


class QKVNorm(QKNorm):
    """QKNorm that also normalizes values, v <- norm_v(v), keeping their dtype."""

    def __init__(self, norm_q: nn.Module, norm_k: nn.Module, norm_v: nn.Module) -> None:
        super().__init__(norm_q, norm_k)
        self.value = norm_v

    def values(self, v_BHTK: torch.Tensor) -> torch.Tensor:
        return self.value(v_BHTK).to(v_BHTK.dtype)


class L2QKNorm(QKTransform):
    """Logits g cos(q, k) with one learned g per layer and no 1/sqrt(head_dim). Henry et al. 2020, eq. 2 and section 3.

    g starts at log2(L^2 - L), where L is the training length. Undoes the scale 1/sqrt(head_dim) of the attention layer.
    """

    def __init__(self, head_dim: int, context: int) -> None:
        super().__init__()
        length = max(context, 2)
        self.gain = nn.Parameter(torch.tensor(math.log2(length * length - length)))
        self.unscale = math.sqrt(head_dim)

    def forward(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q_BHTK, k_BHTK = F.normalize(q_BHTK.float(), dim=-1), F.normalize(k_BHTK.float(), dim=-1)
        return q_BHTK * (self.gain * self.unscale), k_BHTK


class FixedQKNorm(QKTransform):
    def __init__(self, head_dim: int, kappa: float) -> None:
        super().__init__()
        self.length = math.sqrt(kappa * head_dim)

    def forward(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # F.normalize clamps |z| at 1e-12 instead of adding eps, so the formula is exact and zeros stay zero.
        return self.length * F.normalize(q_BHTK.float(), dim=-1), self.length * F.normalize(k_BHTK.float(), dim=-1)


@QK_NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoQKNormConfig(QKNormConfig):
    """Queries and keys as projected. Vaswani et al. 2017."""

    name: Literal["none"] = "none"
    normalizes = False

    def build(self, *, heads: int, head_dim: int, context: int) -> QKTransform:
        return NoQKNorm()


@QK_NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LayerNormQK(QKNormConfig):
    """LayerNorm of queries and keys, head by head. Dehghani et al. 2023 (ViT-22B); Wortsman et al. 2023, Fig. E.8."""

    name: Literal["layernorm"] = "layernorm"
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the variance over the head dimension."""

    def build(self, *, heads: int, head_dim: int, context: int) -> QKTransform:
        return QKNorm(LayerNorm(head_dim, self.eps), LayerNorm(head_dim, self.eps))


@QK_NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LayerNormModelQK(QKNormConfig):
    """LayerNorm of queries and keys over the model dimension, all heads together. Wortsman et al. 2023, Fig. E.8.

    Has one scale per feature of the model, where `layernorm` shares one head's scales; the figure compares both.
    """

    name: Literal["layernorm_model"] = "layernorm_model"
    over_heads = True
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the variance over the model dimension."""

    def build(self, *, heads: int, head_dim: int, context: int) -> QKTransform:
        return QKNorm(OverHeads(heads * head_dim, self.eps), OverHeads(heads * head_dim, self.eps))


@QK_NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LayerNormQKV(QKNormConfig):
    """LayerNorm of queries, keys and values, head by head. After QKV_norm of Rybakov et al. 2024 (arXiv 2410.16682).

    Head by head is our reading. Theirs omits the norm before the projections: use placement=pre_mlp.
    """

    name: Literal["qkv"] = "qkv"
    acts_on_values = True
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the variance over the head dimension."""

    def build(self, *, heads: int, head_dim: int, context: int) -> QKTransform:
        return QKVNorm(*(LayerNorm(head_dim, self.eps) for _ in range(3)))


@QK_NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RMSNormQK(QKNormConfig):
    """RMSNorm of queries and keys, head by head. Yang et al. 2025 (Qwen3)."""

    name: Literal["rmsnorm"] = "rmsnorm"
    eps: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the mean square over the head dimension."""

    def build(self, *, heads: int, head_dim: int, context: int) -> QKTransform:
        return QKNorm(RMSNorm(head_dim, self.eps), RMSNorm(head_dim, self.eps))


@QK_NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class L2QK(QKNormConfig):
    __doc__ = L2QKNorm.__doc__

    name: Literal["l2"] = "l2"
    sets_length = True
    sets_logit_scale = True
    shards = False  # a single number has no rows to shard

    def build(self, *, heads: int, head_dim: int, context: int) -> QKTransform:
        return L2QKNorm(head_dim, context)


@QK_NORM.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FixedQK(QKNormConfig):
    """sqrt(kappa) z / sqrt(mean_i z_i^2), z = q and z = k of a head, no parameters. Wortsman et al. 2023, Fig. 10.

    There it sets the maximal attention logit to about kappa. |q| = |k| = sqrt(kappa head_dim), so logits are
    kappa head_dim scale cos(q, k). With scale 1/sqrt(head_dim), random directions give logits of std kappa, bounded by
    kappa sqrt(head_dim). With scale 1/head_dim (parametrization=inverse_scale) the bound is kappa.
    """

    name: Literal["fixed"] = "fixed"
    sets_length = True
    steep_at_zero = True
    kappa: Annotated[float, Field(gt=0)] = 1.0
    """Mean square of queries and of keys. In Fig. 10 the loss deteriorates around 1e3."""

    def build(self, *, heads: int, head_dim: int, context: int) -> QKTransform:
        return FixedQKNorm(head_dim, self.kappa)
