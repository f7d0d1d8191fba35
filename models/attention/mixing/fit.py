"""FIT in place of attention: tokens attend inside groups of `group`, and hear of earlier groups through latents.

    u = x + local(x)                              causal attention of tokens inside each group
    l_g = l_g + read(N(l_g), N(u_g))              the latents of group g read its tokens
    l = l + global(N(l))                          latents attend to those of their group and of all earlier ones
    l = l + MLP(N(l))
    out = local(x) + write(N(u_g), N(l_g-1))      tokens read the latents of the group before; zeros in the first one

local, read, global and write are attentions softmax(scale q k) v with an output matrix, each with matrices of its own.
`latents` vectors per group are learned as initial values, and the carry hands them from block to block. So token i of
group g knows tokens up to i of its group and, through latents, all of groups < g.

Published: these five parts, the shift by one group, initial latents for each group, LayerNorm (eps 1e-6) on both sides
of read and write. Chen & Li 2023 (FIT, arXiv 2305.12689; google-research/pix2seq, architectures/transformers.py, class
FITAR). Our readings:

- Each block has one local and one global layer; there a string says how many. The tokens' MLP follows write, as the
  block's own, where there it lies between local and read. There no write follows the last local layers.
- u starts from the mixer's input, which the placement has normed, as it does not see the residual stream.
- RoPE (base 10000) by the position inside the group replaces vectors learned for these positions.
- Latents have the width and heads of tokens. Norms and projections have no biases, as everywhere in this model, so that
  write gives the first group exactly zero. No token reads the last group's latents, and so they are not computed.
- Sequences whose length is no multiple of `group` end with a group of fewer tokens. As no token reads its latents, the
  outputs of a prefix are those of the whole sequence.

The other axes of attention, such as qk-norm, do not act on it. With latents=1, the softmax of write has one key, and
its queries and keys learn nothing. On watch steps, logits and entropies of the four attentions are recorded as
local_logit_max, local_entropy and so on; `logit_max` is the largest.

Shape suffixes: B batch, T tokens, D model width, G groups, R groups without the last, N tokens of a group, M latents of
a group, S latents of a sequence, H heads, K head dimension, Q queries and L keys of an attention, ... its batch.
"""

from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape
from models.attention.mixing.replacement import ReplacementConfig
from models.carry import Carry
from models.layers import Embedding, Linear
from models.mixer import TokenMixer
from models.mlp import GELU, hidden_width
from models.norms import LayerNorm
from models.positions import Positions, RotaryConfig
from models.probes import Stats, scaled_products, weight_entropy

if TYPE_CHECKING:
    from models.architecture import Architecture

EPS = 1e-6


class Attend(nn.Module):
    """W_out softmax(scale q k) v, q of one sequence, k and v of another; also returns the logits."""

    def __init__(self, layer: LayerShape, norm: nn.Module, read_norm: nn.Module | None = None) -> None:
        super().__init__()
        width = layer.width
        self.heads, self.scale = layer.heads, layer.scale
        self.norm, self.read_norm = norm, read_norm
        self.query, self.key = Linear(width, width, "query"), Linear(width, width, "key")
        self.value, self.out = Linear(width, width, "value"), Linear(width, width, "out")

    def forward(
        self,
        x_QD: torch.Tensor,
        read_LD: torch.Tensor | None = None,
        hidden_QL: torch.Tensor | None = None,
        positions: Positions | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attends to `read_LD`, by default to x itself, apart from keys that are hidden. Returns [..., Q, D] and z."""
        x_QD = self.norm(x_QD)
        read_LD = x_QD if read_LD is None or self.read_norm is None else self.read_norm(read_LD)
        q_HQK, k_HLK, v_HLK = (
            y.unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for y in (self.query(x_QD), self.key(read_LD), self.value(read_LD))
        )
        if positions is not None:
            q_HQK, k_HLK = positions.rotate(q_HQK, k_HLK)
        z_HQL = scaled_products(q_HQK, k_HLK, self.scale)
        if hidden_QL is not None:
            z_HQL = z_HQL.masked_fill(hidden_QL, -torch.inf)
        mixed_HQK = torch.softmax(z_HQL, -1).to(v_HLK.dtype) @ v_HLK
        return self.out(mixed_HQK.transpose(-2, -3).flatten(-2)), z_HQL


class FIT(TokenMixer):
    over_tokens = False  # but groups of tokens, or latents

    def __init__(self, layer: LayerShape, group: int, latents: int, expand: float) -> None:
        super().__init__()
        self.group, self.latents = group, latents
        width = layer.width

        def norm() -> nn.Module:
            return LayerNorm(width, EPS)

        self.local = Attend(layer, nn.Identity())
        self.read = Attend(layer, norm(), norm())
        self.globally = Attend(layer, norm())
        self.mlp_norm, self.mlp = norm(), GELU(width, hidden_width(width, expand))
        self.write = Attend(layer, norm(), norm())
        count = -(-layer.context // group) - 1
        self.start = Embedding(count * latents, width) if layer.first else None
        self.positions = RotaryConfig().build(width, layer.heads, group)

    def forward(self, x_BTD: torch.Tensor, carry: Carry) -> torch.Tensor:
        batch, length, _ = x_BTD.shape
        groups = -(-length // self.group)
        # Zeros complete the last group, where no token before them sees them.
        filled_BTD = F.pad(x_BTD, (0, 0, 0, groups * self.group - length))
        x_BGND = filled_BTD.unflatten(1, (groups, self.group))
        device = x_BTD.device
        future_NN = torch.ones(self.group, self.group, dtype=torch.bool, device=device).triu(1)
        local_BGND, local_z = self.local(x_BGND, None, future_NN, self.positions)
        u_BGND = x_BGND + local_BGND
        l_BRMD = self.latents_before(batch, groups - 1, carry).unflatten(1, (groups - 1, self.latents))
        read_BRMD, read_z = self.read(l_BRMD, u_BGND[:, :-1])
        l_BSD = (l_BRMD + read_BRMD).flatten(1, 2)
        group_S = torch.arange(groups - 1, device=device).repeat_interleave(self.latents)
        global_BSD, global_z = self.globally(l_BSD, None, group_S > group_S[:, None])
        l_BSD = l_BSD + global_BSD
        l_BSD = l_BSD + self.mlp(self.mlp_norm(l_BSD))
        carry.latents_BSD = l_BSD
        before_BGMD = F.pad(l_BSD.unflatten(1, (groups - 1, self.latents)), (0, 0, 0, 0, 1, 0))
        written_BGND, write_z = self.write(u_BGND, before_BGMD)
        if carry.watch:
            # Without padding, and without the first group, which reads zeros.
            local_z = local_z[:, : max(1, length // self.group), :, :length, :length]
            write_z = write_z.transpose(1, 2).flatten(2, 3)[:, :, self.group : length]
            logits = {"local": local_z.flatten(0, 1), "read": read_z.flatten(0, 1), "global": global_z}
            carry.record("attention", probes(logits | {"write": write_z}))
        return (local_BGND + written_BGND).flatten(1, 2)[:, :length]

    def latents_before(self, batch: int, groups: int, carry: Carry) -> torch.Tensor:
        """Returns the latents that the block starts from, [B, S, D]."""
        if self.start is None:
            assert carry.latents_BSD is not None
            return carry.latents_BSD
        start_SD = self.start.scaled(self.start.weight)[: groups * self.latents]
        return start_SD.expand(batch, -1, -1)


@torch.no_grad()
def probes(logits: dict[str, torch.Tensor]) -> Stats:
    """Returns the largest logit and the mean entropy of each attention that has any logits [B, H, Q, L], [H] each."""
    found: Stats = {}
    for name, z_BHQL in logits.items():
        if z_BHQL.numel():
            found[f"{name}_logit_max"] = z_BHQL.amax((0, 2, 3))
            found[f"{name}_entropy"] = weight_entropy(torch.softmax(z_BHQL, -1)).mean((0, 2))
    largest = [value for name, value in found.items() if name.endswith("logit_max")]
    return found | {"logit_max": torch.stack(largest).amax(0)}


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FITConfig(ReplacementConfig):
    """Attention inside groups of tokens, and over latents that read groups and pass from block to block.

    Chen & Li 2023 (FIT, arXiv 2305.12689), autoregressive form, in place of attention; partly our reading.
    """

    name: Literal["fit"] = "fit"
    endless = False
    group: Annotated[Annotated[int, Field(ge=2)] | None, Field(examples=[2])] = None
    """Tokens per group. null: 1/8 of the context, at least 2."""
    latents: Annotated[int, Field(ge=1)] = 8
    """Latents per group; the value is ours."""
    expand: Annotated[float, Field(gt=0)] = 4.0
    """Hidden width / model width of the latents' MLP."""

    def group_for(self, context: int) -> int:
        return max(2, round(context / 8)) if self.group is None else self.group

    def fits(self, config: "Architecture") -> None:
        super().fits(config)
        size = config.model
        if size.head_dim % 2:
            raise ValueError(
                f"attention=fit rotates queries and keys, which needs an even head dimension, not {size.head_dim} as "
                f"of model.width={size.width} and model.heads={size.heads}: change them or use attention=softmax"
            )
        if not config.qk_source.is_stream:
            raise ValueError(
                f"attention=fit hands latents of the tokens from block to block, but qk_source={config.qk_source.name} "
                f"has a side stream: use qk_source=stream or attention=softmax"
            )
        context = getattr(config, "context", None)
        if context is not None and self.group_for(context) >= context:
            raise ValueError(
                f"attention=fit makes one group of context={context} tokens with attention.group="
                f"{self.group_for(context)}, so that none reads latents: use a smaller group or attention=softmax"
            )

    def mixer(self, layer: LayerShape) -> TokenMixer:
        return FIT(layer, self.group_for(layer.context), self.latents, self.expand)
