"""Layouts, the `layout` axis: which matrices produce the queries, keys and values of the heads.

Mixing rules, qk_norm and positions always receive queries, keys and values of all H heads, whatever the layout.
Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.attention.layer import QKV, Attention, Parts
from models.layers import Linear
from models.mixer import LogitRows
from models.norms import RMSNorm
from models.positions import PositionConfig, Positions, Rotary

if TYPE_CHECKING:
    from models.architecture import Architecture


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LayoutConfig(Choice):
    name: str
    whole_values = False  # whether one [D, D] matrix makes the values from the layer's input
    separate_keys = True  # whether keys can come from another input than values
    faces_stream = True  # whether each matrix reads from or writes to the residual stream

    def build(self, width: int, heads: int, parts: Parts) -> Attention:
        raise NotImplementedError

    def positions(self, config: PositionConfig, width: int, heads: int, context: int) -> Positions:
        """Builds the positions shared by all blocks, for the features that `Attention.rotate` rotates."""
        return config.build(width, heads, context)


LAYOUT: Axis[LayoutConfig] = Axis("layout")


class GroupedQuery(Attention):
    def __init__(self, width: int, heads: int, parts: Parts, kv_heads: int) -> None:
        narrow = kv_heads * (width // heads)
        key, value = parts.make("key", width, narrow), parts.make("value", width, narrow)
        # Wider models have more query heads of the same size, and as many of these.
        key.rows_follow_width = value.rows_follow_width = False
        super().__init__(width, heads, parts, {"key": key, "value": value})
        self.group = heads // kv_heads

    def project(self, x_BTD: torch.Tensor, source_BTD: torch.Tensor) -> QKV:
        q_BHTK, k_BGTK, v_BGTK = super().project(x_BTD, source_BTD)
        return q_BHTK, k_BGTK.repeat_interleave(self.group, 1), v_BGTK.repeat_interleave(self.group, 1)

    def logit_rows(self) -> LogitRows:
        """Scales by the query alone, because a key serves several heads."""
        return [(self.query, slice(None), 1.0)]


class Latent(Attention):
    """Positions rotate only the last `rope_dim` features of each head; all heads share that part of the key."""

    query_down: Linear
    query_norm: RMSNorm
    latent: Linear
    latent_norm: RMSNorm
    rope_key: Linear

    def __init__(
        self, width: int, heads: int, parts: Parts, *, rope_dim: int, query_rank: int | None, latent_rank: int
    ) -> None:
        # DeepSeek's code fuses these two; here every layout keeps keys and values separate.
        projections = {
            "key": parts.make("key", latent_rank, width - heads * rope_dim),
            "value": parts.make("value", latent_rank, width),
        }
        more: dict[str, nn.Module] = {}
        if query_rank is not None:
            projections["query"] = parts.make("query", query_rank, width)
            more |= {"query_down": Linear(width, query_rank), "query_norm": RMSNorm(query_rank, 1e-6)}
        more |= {"latent": Linear(width, latent_rank), "latent_norm": RMSNorm(latent_rank, 1e-6)}
        super().__init__(width, heads, parts, projections, more | {"rope_key": Linear(width, rope_dim)})
        self.rope_key.rows_follow_width = False
        self.rope_dim = rope_dim
        self.query_is_low_rank = query_rank is not None

    def project(self, x_BTD: torch.Tensor, source_BTD: torch.Tensor) -> QKV:
        query_in_BTR = self.query_norm(self.query_down(x_BTD)) if self.query_is_low_rank else x_BTD
        latent_BTR = self.latent_norm(self.latent(x_BTD))
        q_BHTK = self.split(self.query(query_in_BTR))
        nope_BHTK = self.split(self.key(latent_BTR), self.head_dim - self.rope_dim)
        v_BHTK = self.split(self.value(latent_BTR))
        rope_BHTK = self.rope_key(x_BTD)[:, None].expand(-1, self.heads, -1, -1)
        return q_BHTK, torch.cat([nope_BHTK, rope_BHTK], -1), v_BHTK

    @property
    def bare(self) -> bool:
        return False

    def rotate(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        still = self.head_dim - self.rope_dim
        turned = super().rotate(q_BHTK[..., still:], k_BHTK[..., still:])
        q_BHTK, k_BHTK = (
            torch.cat([x_BHTK[..., :still].to(turned_BHTK.dtype), turned_BHTK], -1)
            for x_BHTK, turned_BHTK in zip((q_BHTK, k_BHTK), turned, strict=True)
        )
        return q_BHTK, k_BHTK

    def logit_rows(self) -> LogitRows:
        """Scales the rotated part by the query alone, as all heads share its key. Kimi Team 2025, section 2.1."""
        still, turned = slice(0, self.head_dim - self.rope_dim), slice(self.head_dim - self.rope_dim, None)
        return [(self.query, still, 0.5), (self.query, turned, 1.0), (self.key, still, 0.5)]


@LAYOUT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MultiHead(LayoutConfig):
    """Multi-head attention: one matrix each for the queries, keys and values of all heads. Vaswani et al. 2017."""

    name: Literal["mha"] = "mha"
    whole_values = True

    def build(self, width: int, heads: int, parts: Parts) -> Attention:
        return Attention(width, heads, parts)


@LAYOUT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class GroupedQueryConfig(LayoutConfig):
    """Grouped-query attention: head h uses the key and value of group floor(h kv_heads / heads), counted from 0.

    Ainslie et al. 2023 (GQA, arXiv 2305.13245); one group is MQA, Shazeer 2019 (arXiv 1911.02150). W_k and W_v have
    kv_heads head_dim outputs; W_q and W_out are as in `mha`. A value residual and norms of values or keys act on each
    group. nGPT still learns one scale per feature of each query head.
    """

    name: Literal["gqa"] = "gqa"
    kv_heads: Annotated[int, Field(ge=1)] = 1
    """Number of key and value heads, a divisor of model.heads. 1 is MQA; model.heads is the same as `mha`."""

    def build(self, width: int, heads: int, parts: Parts) -> Attention:
        return GroupedQuery(width, heads, parts, self.kv_heads)

    def fits(self, config: "Architecture") -> None:
        heads = config.model.heads
        if heads % self.kv_heads:
            near = max(h for h in range(1, min(heads, self.kv_heads) + 1) if heads % h == 0)
            raise ValueError(
                f"layout.kv_heads={self.kv_heads} does not divide model.heads={heads}: layout.kv_heads={near} would"
            )
        if config.qk_norm.over_heads:
            raise ValueError(
                f"layout=gqa has fewer keys than queries, but qk_norm={config.qk_norm.name} needs equally many: "
                f"use qk_norm=layernorm or layout=mha"
            )


@LAYOUT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LatentConfig(LayoutConfig):
    """Multi-head latent attention: keys and values are W N(W_down x) with a latent narrower than x, as are queries.

    DeepSeek-AI 2024 (DeepSeek-V2, arXiv 2405.04434), section 2.1; deepseek-ai/DeepSeek-V3. N is an RMSNorm. Positions
    rotate only the share `rope` of each head's features. That part of the key is a projection of x shared by all heads.

    Differences from DeepSeek: queries and keys have head_dim features in total, so logits have the same scale as in
    other layouts, whereas DeepSeek's unrotated part alone is as wide as a value. The `qk_norm` axis acts on the whole
    query and key of each head, whereas DeepSeek has no norm there. Ranks are shares of the width, so that every fan-in
    follows the width, as parametrizations assume.
    """

    name: Literal["mla"] = "mla"
    separate_keys = False
    faces_stream = False
    rope: Annotated[float, Field(gt=0, lt=1)] = 1 / 3
    """Share of a head's features that positions rotate, rounded to an even number. DeepSeek-V2: 64 of 192."""
    query_rank: Annotated[float, Field(gt=0, le=1)] | None = 0.3
    """Width of the queries' latent / model width. null: queries are made from x directly. DeepSeek-V2: 1536 of 5120."""
    latent_rank: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Width of the latent of keys and values / model width. DeepSeek-V2-Lite: 512 of 2048; there, as here, all heads
    together are as wide as the model."""

    def rope_dim(self, head_dim: int) -> int:
        return 2 * max(1, round(self.rope * head_dim / 2))

    def build(self, width: int, heads: int, parts: Parts) -> Attention:
        return Latent(
            width,
            heads,
            parts,
            rope_dim=self.rope_dim(width // heads),
            query_rank=None if self.query_rank is None else max(1, round(self.query_rank * width)),
            latent_rank=max(1, round(self.latent_rank * width)),
        )

    def positions(self, config: PositionConfig, width: int, heads: int, context: int) -> Positions:
        made = config.build(width, heads, context)
        if isinstance(made, Rotary):
            return config.build(heads * self.rope_dim(width // heads), heads, context)
        return made

    def fits(self, config: "Architecture") -> None:
        head_dim, heads = config.model.head_dim, config.model.heads
        if self.rope_dim(head_dim) >= head_dim:
            raise ValueError(
                f"layout=mla rotates {self.rope_dim(head_dim)} of {head_dim} features per head with rope={self.rope:g} "
                f"and model.heads={heads}, which leaves none unrotated: use fewer heads or layout=mha"
            )
