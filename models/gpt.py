"""The proxy: a decoder-only Transformer put together from the parts that the config's axes choose.

Shape suffixes: B batch, T tokens, D model width, V vocabulary, H heads, K head dimension.
"""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Choice, axes, import_all
from models.attention.dual_stream import DualStreamName, separate
from models.attention.dual_stream import fits as dual_fits
from models.attention.gates import GATE, GateConfig
from models.attention.layouts import LAYOUT, LayoutConfig
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule
from models.attention.pattern import check_depth
from models.attention.qk_norm import QK_NORM, QKNormConfig
from models.attention.qk_source import QK_SOURCE, QKSourceConfig
from models.attention.sharing import Borrowing, Lender
from models.attention.sharing import fits as share_fits
from models.attention.sinks import SINK, SinkConfig
from models.attention.temperature import TEMPERATURE, TemperatureConfig
from models.attention.value_residual import ValueResidualName, value_residual
from models.init import INIT, InitConfig
from models.layers import Embedding, Linear
from models.mlp import MLP, MLPConfig
from models.norms import NORM, NormConfig
from models.parametrization import PARAMETRIZATION, ParametrizationConfig, scale_init, set_multipliers
from models.placement.base import PLACEMENT, Placement, PlacementConfig, Site
from models.placement.layer_scale import BranchScale, LayerScale
from models.positions import POSITION, PositionConfig, Positions
from models.probes import Stats, stream_stats
from models.reparametrization.base import REPARAMETRIZATION, ReparametrizationConfig
from models.size import SizeConfig

import_all("models.attention.mixing")
import_all("models.parametrization")
import_all("models.placement")
import_all("models.reparametrization")


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Architecture:
    """The axes that make the model."""

    model: SizeConfig
    attention: Annotated[MixingConfig, ATTENTION]
    layout: Annotated[LayoutConfig, LAYOUT]
    qk_source: Annotated[QKSourceConfig, QK_SOURCE]
    temperature: Annotated[TemperatureConfig, TEMPERATURE]
    sink: Annotated[SinkConfig, SINK]
    gate: Annotated[GateConfig, GATE]
    qk_norm: Annotated[QKNormConfig, QK_NORM]
    norm: Annotated[NormConfig, NORM]
    placement: Annotated[PlacementConfig, PLACEMENT]
    layer_scale: Annotated[float, Field(ge=0)] | None
    """Initial value of LayerScale, a learned factor a channel on what each sublayer adds; null is without.
    Touvron et al. 2021 (CaiT): 0.1 to 18 blocks, 1e-5 to 24, 1e-6 beyond."""
    embedding_norm: bool
    """A norm of the norm axis on the embedding, positions included: the first stream of Peri-LN (Kim et al. 2025),
    the embedding LayerNorm of BLOOM and of Takase et al. 2023."""
    value_residual: ValueResidualName | None
    """Values of each block but the first: l_1 times the first block's plus l_2 times its own, as they come out of the
    value projection (placement=hybridnorm, qk_norm=qkv: after their norm). identity: both 1/2; learnable: two numbers
    a block that start at 1/2; null: its own. Zhou et al. 2024 (ResFormer)."""
    share_attention: Annotated[int, Field(ge=1, examples=[2])]
    """Blocks of a group that share their attention weights: the first makes queries and keys, the others have values
    and a learned W_c h of what they read, which starts at zero. 1 shares none. After UniAttn, Xiong et al. 2025."""
    dual_stream: DualStreamName | None
    """Two residual streams: attention makes its values of, and adds to, one of its own, queries, keys and MLPs see the
    sum with what the MLPs add. What mixes heads in value and output projection: independent, kronecker or dense maps.
    null is one stream. Kerce & Fox 2026 (arXiv 2603.07461)."""
    position: Annotated[PositionConfig, POSITION]
    mlp: Annotated[MLPConfig, MLP]
    init: Annotated[InitConfig, INIT]
    parametrization: Annotated[ParametrizationConfig, PARAMETRIZATION]
    reparametrization: Annotated[ReparametrizationConfig, REPARAMETRIZATION]

    @model_validator(mode="after")
    def _axes_go_together(self) -> "Architecture":
        check_depth(self.attention.name, self.attention.pattern, self.model.depth)
        for axis in axes(type(self)):
            chosen = getattr(self, axis)
            if isinstance(chosen, Choice):
                chosen.fits(self)
        for rule in self.attention.of_blocks(self.model.depth):
            if rule is not self.attention:
                rule.fits(self)
        share_fits(self.share_attention, self)
        if self.dual_stream is not None:
            dual_fits(self.dual_stream, self)
        if self.embedding_norm and self.norm.name == "none":
            raise ValueError("embedding_norm=true has no norm to use with norm=none: use norm=layernorm or false")
        return self


class Block(nn.Module):
    """Attention, then an MLP, each inside the norms of the placement. The residual stream stays in fp32."""

    def __init__(self, arch: Architecture, positions: Positions, context: int, index: int) -> None:
        super().__init__()
        width, heads = arch.model.width, arch.model.heads
        head_dim = arch.model.head_dim
        scale = arch.placement.attention_scale(head_dim, arch.parametrization.attention_scale(head_dim))
        layer = LayerShape(width, heads, head_dim, scale, context, index, arch.model.depth)
        self.attention_norms = _norms(arch, "attention", index)
        rule = arch.attention.of_block(index, arch.model.depth)
        self.attention: Any
        if index % arch.share_attention:
            self.attention = Borrowing(width, heads)
        elif rule.mixes:
            qk_norm = arch.qk_norm.build(heads=heads, head_dim=head_dim, context=context)
            self.attention = arch.layout.build(width, heads, qk_norm, positions, rule.build(layer))
            self.attention.temperature = arch.temperature.build(layer)
            self.attention.sink = arch.sink.build(layer)
        else:
            self.attention = rule.sublayer(width)
        if rule.mixes:
            self.attention.gate = arch.gate.build(layer)
        if arch.value_residual is not None and index > 0:
            self.attention.value_residual = value_residual(arch.value_residual)
        if arch.dual_stream is not None:
            separate(self.attention, arch.dual_stream)
        self.mlp_norms = _norms(arch, "mlp", index)
        self.mlp = arch.mlp.build(width)
        arch.placement.insert(self.attention, self.mlp, arch.norm)

    def forward(
        self,
        x_BTD: torch.Tensor,
        watch: bool = False,
        first_BHTK: torch.Tensor | None = None,
        source_BTD: torch.Tensor | None = None,
        lenders: list[Lender] | None = None,
        token_streams: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, Stats, torch.Tensor | None]:
        """The residual stream, the probes, and the values of this block; `first` are those of the first.

        `source` is what queries and keys are made of where that is not what attention reads. Blocks that share their
        attention's weights hand them on in `lenders`. A dual-stream model's values are made of the last of
        `token_streams`, to which this block's is added.
        """
        return self.run(x_BTD, watch, first_BHTK, source_BTD, lenders, token_streams)[:3]

    def run(
        self,
        x_BTD: torch.Tensor,
        watch: bool = False,
        first_BHTK: torch.Tensor | None = None,
        source_BTD: torch.Tensor | None = None,
        lenders: list[Lender] | None = None,
        token_streams: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, Stats, torch.Tensor | None, torch.Tensor]:
        """As `forward`, and last what attention read."""
        stats: Stats = {}
        seen: list[tuple[torch.Tensor | None, torch.Tensor]] = []

        def attend(h_BTD: torch.Tensor) -> torch.Tensor:
            value_BTD, qk_BTD = (h_BTD, source_BTD) if token_streams is None else (token_streams[-1], h_BTD)
            mixed_BTD, found, v_BHTK = self.attention(value_BTD, watch, first_BHTK, qk_BTD, lenders)
            stats.update(found)
            seen.append((v_BHTK, h_BTD))
            return mixed_BTD

        attended_BTD = self.attention_norms(x_BTD, attend)
        if token_streams is not None:
            token_streams.append(token_streams[-1] + (attended_BTD - x_BTD))
        return self.mlp_norms(attended_BTD, self.mlp), stats, *seen[0]


def _norms(arch: Architecture, sublayer: Literal["attention", "mlp"], index: int) -> Placement:
    norms = arch.placement.build(arch.norm, Site(sublayer, index, arch.model.depth, arch.model.width))
    factor = arch.parametrization.branch_scale(arch.model, sublayer)
    if arch.layer_scale is not None:
        norms.scale = LayerScale(arch.model.width, arch.layer_scale, factor)
    elif factor != 1.0:
        norms.scale = BranchScale(factor)
    return norms


class GPT(nn.Module):
    """Untied embedding and head, a norm before the head where the placement has one, logits in fp32."""

    def __init__(self, arch: Architecture, *, vocab_size: int, context: int) -> None:
        super().__init__()
        width = arch.model.width
        self.context = context
        self.shares_attention = arch.share_attention > 1
        self.has_two_streams = arch.dual_stream is not None
        self.embedding = Embedding(vocab_size, width)
        self.sink_token = Embedding(arch.sink.tokens, width) if arch.sink.tokens else None
        # Of what attention sees.
        context += arch.sink.tokens
        self.positions = arch.layout.positions(arch.position, width, arch.model.heads, context)
        self.embedding_norm = arch.norm.build(width) if arch.embedding_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(arch, self.positions, context, i) for i in range(arch.model.depth))
        self.final_norm = arch.norm.build(width) if arch.placement.final_norm else nn.Identity()
        self.head = Linear(width, vocab_size)
        self.qk_source = arch.qk_source.build(self.context, width)
        arch.placement.complete(self)
        set_multipliers(arch.parametrization, self, arch.model)
        self.reparametrization = arch.reparametrization.build(self)

    def forward(self, tokens_BT: torch.Tensor, watch: bool = False) -> tuple[torch.Tensor, Stats]:
        """Next-token logits, fp32 [B, T, V], and with `watch` the probes of every block."""
        x_BTD, stats = self.hidden(tokens_BT, watch)
        return self.logits(x_BTD), stats

    def enter(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """The residual stream that begins with these embeddings, behind a sink's token if there is one."""
        if self.sink_token is not None:
            sink_1D = self.sink_token.scaled(self.sink_token.weight)
            x_BTD = torch.cat([sink_1D.expand(len(x_BTD), -1, -1), x_BTD], 1)
        return self.embedding_norm(self.positions.embed(x_BTD))

    def hidden(self, tokens_BT: torch.Tensor, watch: bool = False) -> tuple[torch.Tensor, Stats]:
        """What enters the head, times its multiplier, [B, T, D], and the probes."""
        x_BTD = self.enter(self.embedding(tokens_BT))
        stats: Stats = {}
        first_BHTK: torch.Tensor | None = None
        side_first_BHTK: torch.Tensor | None = None
        side_BTD, source_BTD = self.qk_source.start(self, x_BTD, tokens_BT.shape[1]), None
        lenders: list[Lender] | None = [] if self.shares_attention else None
        token_streams: list[torch.Tensor] | None = [x_BTD] if self.has_two_streams else None
        for index, block in enumerate(self.blocks):
            if side_BTD is not None:
                source_BTD, side_BTD, values_BHTK = self.qk_source.advance(block, side_BTD, side_first_BHTK)
                side_first_BHTK = values_BHTK if index == 0 else side_first_BHTK
            x_BTD, found, values_BHTK = block(x_BTD, watch, first_BHTK, source_BTD, lenders, token_streams)
            first_BHTK = values_BHTK if index == 0 else first_BHTK
            stats |= {f"attention/block{index}/{name}": value for name, value in found.items()}
            if watch:
                stats |= {f"residual/block{index}/{name}": value for name, value in stream_stats(x_BTD).items()}
        if self.sink_token is not None:
            x_BTD = x_BTD[:, self.sink_token.num_embeddings :]
        x_BTD = self.final_norm(x_BTD)
        return (x_BTD if self.head.multiplier == 1.0 else self.head.multiplier * x_BTD), stats

    def logits(self, x_BTD: torch.Tensor, head_VD: torch.Tensor | None = None) -> torch.Tensor:
        """Of what `hidden` gives; `head_VD` is the head's matrix where the caller has it already."""
        return fp32_head(x_BTD, self.head.matrix() if head_VD is None else head_VD)

    def parameter_count(self) -> int:
        """N: everything but the embeddings and the head (Wortsman et al. 2023, section 2.1)."""
        apart = (self.embedding, self.sink_token, self.head, self.positions)
        outside = {id(p) for m in apart if m is not None for p in m.parameters()}
        return sum(p.numel() for p in self.parameters() if id(p) not in outside)


def initialize(model: GPT, arch: Architecture, seed: int) -> None:
    """Fills every parameter, a pure function of the seed: by init, then as placement and parametrization ask."""
    generator = torch.Generator().manual_seed(seed)
    arch.init.apply(model, generator)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, MixingRule | Borrowing):
                module.draw(generator)
        model.qk_source.draw(generator, arch.init.embedding_std(arch.model.width))
    arch.placement.rescale(list(model.blocks))
    scale_init(arch.parametrization, model, arch.model, arch.init)
    arch.placement.constrain(model)
    arch.reparametrization.start(model)


class _Head(torch.autograd.Function):
    """fp32 logits whose backward products run in the autocast dtype, like those of every other layer."""

    @staticmethod
    def forward(ctx, x_ND: torch.Tensor, weight_VD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        ctx.save_for_backward(x_ND, weight_VD)
        ctx.dtype = dtype
        return x_ND @ weight_VD.T

    @staticmethod
    def backward(ctx, grad_NV: torch.Tensor):
        x_ND, weight_VD = ctx.saved_tensors
        grad_NV = grad_NV.to(ctx.dtype)
        return (grad_NV @ weight_VD.to(ctx.dtype)).float(), (grad_NV.T @ x_ND.to(ctx.dtype)).float(), None


def fp32_head(x_BTD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
    """x W^T in fp32, [B, T, V], also under autocast."""
    device = x_BTD.device.type
    if not torch.is_autocast_enabled(device):
        return F.linear(x_BTD, weight_VD)
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        logits_NV = _Head.apply(x_BTD.flatten(0, -2), weight_VD, dtype)
    return logits_NV.unflatten(0, x_BTD.shape[:-1])
