"""Layouts, the `layout` axis: of what matrices queries, keys and values of the heads are made.

Every mixing rule, qk_norm and position works with every layout: it sees queries, keys and values of all H heads.
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
    whole_values = False  # whether values are one matrix of what attention reads, [D, D]
    separate_keys = True  # whether keys can be made of something else than values
    faces_stream = True  # whether each matrix reads or writes the residual stream

    def build(self, width: int, heads: int, parts: Parts) -> Attention:
        raise NotImplementedError

    def positions(self, config: PositionConfig, width: int, heads: int, context: int) -> Positions:
        """Of all blocks, for the features that `Attention.rotate` turns."""
        return config.build(width, heads, context)


LAYOUT: Axis[LayoutConfig] = Axis("layout")


class GroupedQuery(Attention):
    def __init__(self, width: int, heads: int, parts: Parts, kv_heads: int) -> None:
        narrow = kv_heads * (width // heads)
        key, value = parts.make("key", width, narrow), parts.make("value", width, narrow)
        super().__init__(width, heads, parts, {"key": key, "value": value})
        self.group = heads // kv_heads

    def project(self, x_BTD: torch.Tensor, source_BTD: torch.Tensor) -> QKV:
        q_BHTK, k_BGTK, v_BGTK = super().project(x_BTD, source_BTD)
        return q_BHTK, k_BGTK.repeat_interleave(self.group, 1), v_BGTK.repeat_interleave(self.group, 1)

    def logit_rows(self) -> LogitRows:
        """A key serves several heads, so a factor of one head's logits is its query's alone."""
        return [(self.query, slice(None), 1.0)]


class Latent(Attention):
    """`rope_dim` features of each head are turned by the positions, the last ones; their key is one for all heads."""

    query_down: Linear
    query_norm: RMSNorm
    latent: Linear
    latent_norm: RMSNorm
    rope_key: Linear

    def __init__(
        self, width: int, heads: int, parts: Parts, *, rope_dim: int, query_rank: int | None, latent_rank: int
    ) -> None:
        # Two matrices where DeepSeek's code has one, as keys and values are apart in all layouts.
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

    def rotate(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        still = self.head_dim - self.rope_dim
        turned = super().rotate(q_BHTK[..., still:], k_BHTK[..., still:])
        q_BHTK, k_BHTK = (
            torch.cat([x_BHTK[..., :still].to(turned_BHTK.dtype), turned_BHTK], -1)
            for x_BHTK, turned_BHTK in zip((q_BHTK, k_BHTK), turned, strict=True)
        )
        return q_BHTK, k_BHTK

    def logit_rows(self) -> LogitRows:
        """The shared key serves all heads, so that its queries take the whole factor. Kimi Team 2025, section 2.1."""
        still, turned = slice(0, self.head_dim - self.rope_dim), slice(self.head_dim - self.rope_dim, None)
        return [(self.query, still, 0.5), (self.query, turned, 1.0), (self.key, still, 0.5)]


@LAYOUT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MultiHead(LayoutConfig):
    """Multi-head attention: a matrix each for the queries, keys and values of all heads. Vaswani et al. 2017."""

    name: Literal["mha"] = "mha"
    whole_values = True

    def build(self, width: int, heads: int, parts: Parts) -> Attention:
        return Attention(width, heads, parts)


@LAYOUT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class GroupedQueryConfig(LayoutConfig):
    """Grouped-query attention: head h has the key and value of group floor(h kv_heads / heads), counted from 0.

    Ainslie et al. 2023 (GQA, arXiv 2305.13245); one group is MQA, Shazeer 2019 (arXiv 1911.02150). W_k and W_v are
    kv_heads head_dim wide, W_q and W_out as in `mha`. A value residual and norms of values or keys act on each group.
    nGPT's scales of queries and keys stay one a feature of each query head.
    """

    name: Literal["gqa"] = "gqa"
    kv_heads: Annotated[int, Field(ge=1)] = 1
    """Heads of keys and values, a divisor of model.heads, which would be `mha`; 1 is MQA."""

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
                f"layout=gqa has fewer keys than queries, qk_norm={config.qk_norm.name} normalizes as many of both: "
                f"use qk_norm=layernorm or layout=mha"
            )


@LAYOUT.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LatentConfig(LayoutConfig):
    """Multi-head latent attention: keys and values of W N(W_down x), a latent narrower than x; so are queries.

    DeepSeek-AI 2024 (DeepSeek-V2, arXiv 2405.04434), section 2.1; deepseek-ai/DeepSeek-V3. N is an RMSNorm. Positions
    turn `rope` of the features of each head alone; that part of the key is a projection of x, one for all heads.

    There the features that aren't turned are as many as those of a value, here both parts together are: queries and
    keys of head_dim features, so that logits have the scale of every other layout. The norms of the `qk_norm` axis
    act on the whole query and key of each head, where DeepSeek has none. Ranks are shares of the width, for the tables
    of parametrizations: every fan-in follows the width.
    """

    name: Literal["mla"] = "mla"
    separate_keys = False
    faces_stream = False
    rope: Annotated[float, Field(gt=0, lt=1)] = 1 / 3
    """Share of a head's features that positions turn, rounded to an even number. 64 of 192 in DeepSeek-V2."""
    query_rank: Annotated[float, Field(gt=0, le=1)] | None = 0.3
    """Width of the latent of queries / model width; null makes queries of x. DeepSeek-V2: 1536 of 5120."""
    latent_rank: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Width of the latent of keys and values / model width. DeepSeek-V2-Lite: 512 of 2048, where, as here, the heads
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
                f"layout=mla turns {self.rope_dim(head_dim)} features of a head with rope={self.rope:g}, of "
                f"{head_dim} as of model.heads={heads}: use fewer heads or layout=mha"
            )
