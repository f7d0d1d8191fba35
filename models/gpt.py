"""The proxy: a decoder-only Transformer put together from the parts that the config's axes choose.

Shape suffixes: B batch, T tokens, D model width, V vocabulary.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.attention import Attention
from models.attention.mixing import ATTENTION, MixingConfig, import_rules
from models.init import INIT, InitConfig
from models.mlp import MLP, MLPConfig
from models.norms import NORM, NormConfig
from models.parametrization import PARAMETRIZATION, ParametrizationConfig, scale_init
from models.positions import POSITION, PositionConfig, Positions
from models.probes import Stats, rms
from models.qk_norm import QK_NORM, QKNormConfig

import_rules()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SizeConfig:
    """One rung of a ladder; with a 4x MLP and no biases N = 12 depth width^2."""

    name: str
    """What the run folder and the figures call this size."""
    width: Annotated[int, Field(ge=1)]
    """Model width d."""
    depth: Annotated[int, Field(ge=0)]
    """Number of blocks; 0 is the bigram model of Wortsman et al. 2023, Fig. 10."""
    heads: Annotated[int, Field(ge=1)]
    """Attention heads; in the ladders they grow with width at a constant head dimension."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "SizeConfig":
        if self.width % self.heads:
            fits = [h for h in range(1, self.width + 1) if self.width % h == 0]
            near = min(fits, key=lambda h: abs(h - self.heads))
            raise ValueError(f"heads={self.heads} does not divide width={self.width}: heads={near} would")
        return self


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Architecture:
    """The axes that make the model."""

    model: SizeConfig
    attention: Annotated[MixingConfig, ATTENTION]
    qk_norm: Annotated[QKNormConfig, QK_NORM]
    norm: Annotated[NormConfig, NORM]
    position: Annotated[PositionConfig, POSITION]
    mlp: Annotated[MLPConfig, MLP]
    init: Annotated[InitConfig, INIT]
    parametrization: Annotated[ParametrizationConfig, PARAMETRIZATION]

    def initialise(self, model: "GPT", seed: int) -> None:
        """Draws the weights of a model of this architecture: a pure function of the seed, on CPU."""
        self.init.apply(model, torch.Generator().manual_seed(seed))
        scale_init(self.parametrization, model, self.model.width)


class Block(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x)). The residual stream stays in fp32."""

    def __init__(self, arch: Architecture, positions: Positions, context: int, index: int) -> None:
        super().__init__()
        width, heads = arch.model.width, arch.model.heads
        self.attention_norm = arch.norm.build(width)
        self.attention = Attention(
            width,
            heads,
            arch.qk_norm.build(width // heads, context),
            positions,
            arch.attention.build(
                heads=heads,
                head_dim=width // heads,
                scale=arch.parametrization.attention_scale(width // heads),
                context=context,
                block=index,
            ),
        )
        self.mlp_norm = arch.norm.build(width)
        self.mlp = arch.mlp.build(width)

    def forward(self, x_BTD: torch.Tensor, watch: bool = False) -> tuple[torch.Tensor, Stats]:
        mixed_BTD, stats = self.attention(self.attention_norm(x_BTD), watch)
        x_BTD = x_BTD + mixed_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), stats


class GPT(nn.Module):
    """Untied embedding and head, a norm before the head, logits in fp32."""

    def __init__(self, arch: Architecture, *, vocab_size: int, context: int) -> None:
        super().__init__()
        width = arch.model.width
        self.context = context
        self.embedding = nn.Embedding(vocab_size, width)
        self.positions = arch.position.build(width, arch.model.heads, context)
        self.blocks = nn.ModuleList(Block(arch, self.positions, context, i) for i in range(arch.model.depth))
        self.final_norm = arch.norm.build(width)
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, tokens_BT: torch.Tensor, watch: bool = False) -> tuple[torch.Tensor, Stats]:
        """Next-token logits, fp32 [B, T, V], and with `watch` the probes of every block."""
        x_BTD, stats = self.hidden(tokens_BT, watch)
        return self.logits(x_BTD), stats

    def hidden(self, tokens_BT: torch.Tensor, watch: bool = False) -> tuple[torch.Tensor, Stats]:
        """What enters the head, [B, T, D], and the probes."""
        x_BTD = self.positions.embed(self.embedding(tokens_BT))
        stats: Stats = {}
        for index, block in enumerate(self.blocks):
            x_BTD, found = block(x_BTD, watch)
            if watch:
                stats |= {f"attention/block{index}/{name}": value for name, value in found.items()}
                stats[f"residual/block{index}/rms"] = rms(x_BTD)
        return self.final_norm(x_BTD), stats

    def logits(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return fp32_head(x_BTD, self.head.weight)

    def parameter_count(self) -> int:
        """N: everything but the embeddings and the head (Wortsman et al. 2023, section 2.1)."""
        outside = {id(p) for m in (self.embedding, self.head, self.positions) for p in m.parameters()}
        return sum(p.numel() for p in self.parameters() if id(p) not in outside)


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
