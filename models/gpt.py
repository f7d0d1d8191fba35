"""The proxy: a decoder-only Transformer assembled from the parts that the config's axes select.

Shape suffixes: B batch, T tokens, D model width, V vocabulary.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from models.architecture import Architecture
from models.attention.dual_stream import separated
from models.attention.layer import Parts
from models.attention.mixing.base import LayerShape
from models.attention.sharing import Borrowing
from models.attention.value_residual import value_residual
from models.carry import Carry
from models.experts.layer import MoE
from models.layers import Embedding, Linear, Make
from models.mixer import TokenMixer
from models.parametrization import scale_init, set_multipliers
from models.parametrization.base import Sublayer
from models.placement.base import Placement, Site
from models.placement.layer_scale import branch_scale
from models.positions import Positions
from models.probes import Stats, stream_stats
from models.recompute import Recompute, block_again
from models.shortcut import AugmentedShortcut

AUXILIARY = "train/auxiliary"
"""Name among the probes of the sum of the layers' own losses, such as those of routers."""


class Block(nn.Module):
    """One block: a token mixer (attention by default), then an MLP, each wrapped in the placement's norms.

    The residual stream stays in fp32.
    """

    def __init__(self, arch: Architecture, positions: Positions, context: int, index: int) -> None:
        super().__init__()
        self.index = index
        make: Make = partial(arch.placement.projection, norm=arch.norm, head_dim=arch.model.head_dim)
        self.attention_norms = _norms(arch, "attention", index)
        self.attention = _mixer(arch, positions, context, index, make)
        self.shortcut = None
        if arch.augmented_shortcut is not None:
            self.shortcut = AugmentedShortcut(arch.model.width, arch.augmented_shortcut)
        self.mlp_norms = _norms(arch, "mlp", index)
        self.mlp = arch.mlp.build(arch.model.width, make)

    def forward(self, x_BTD: torch.Tensor, carry: Carry) -> torch.Tensor:
        """Returns the residual stream after the block."""
        carry.block = self.index

        def mix(h_BTD: torch.Tensor) -> torch.Tensor:
            carry.read_BTD = h_BTD
            if carry.token_BTD is None:
                mixed_BTD = self.attention(h_BTD, carry)
                return mixed_BTD if self.shortcut is None else mixed_BTD + self.shortcut(h_BTD)
            # Dual stream: attention weights come from the sum of the streams, values from the token stream.
            carry.source_BTD = h_BTD
            return self.attention(carry.token_BTD, carry)

        mixed_BTD = self.attention_norms(x_BTD, mix)
        if carry.token_BTD is not None:
            carry.token_BTD = carry.token_BTD + (mixed_BTD - x_BTD)

        def feed(h_BTD: torch.Tensor) -> torch.Tensor:
            return self.mlp(h_BTD, carry) if isinstance(self.mlp, MoE) else self.mlp(h_BTD)

        x_BTD = self.mlp_norms(mixed_BTD, feed)
        if carry.watch:
            carry.record("residual", stream_stats(x_BTD))
        return x_BTD


def _mixer(arch: Architecture, positions: Positions, context: int, index: int, make: Make) -> TokenMixer:
    """Builds the token mixer of block `index`; `context` is the number of tokens that attention sees."""
    size = arch.model
    rule = arch.attention.of_block(index, size.depth)
    key_dim = rule.key_dim or size.head_dim
    scale = arch.placement.attention_scale(key_dim, arch.parametrization.attention_scale(key_dim))
    first = all(arch.attention.of_block(earlier, size.depth).name != rule.name for earlier in range(index))
    layer = LayerShape(size.width, size.heads, size.head_dim, scale, context, index, size.depth, first)
    if not rule.has_weights:
        return rule.mixer(layer)
    residual = value_residual(arch.value_residual) if arch.value_residual is not None and index > 0 else None
    if index % arch.share_attention:
        gate = arch.gate.build(layer)
        return Borrowing(size.width, size.heads, make=make, gate=gate, value_residual=residual)
    parts = Parts(
        mix=rule.build(layer),
        qk_norm=arch.qk_norm.build(heads=size.heads, head_dim=key_dim, context=context),
        positions=positions,
        make=make if arch.dual_stream is None else separated(arch.dual_stream, size.heads, make),
        sink=arch.sink.build(layer),
        temperature=arch.temperature.build(layer),
        gate=arch.gate.build(layer),
        value_residual=residual,
        after_positions=arch.placement.after_positions(size.width, size.heads),
        lends=arch.share_attention > 1,
    )
    return arch.layout.build(size.width, size.heads, parts)


def _norms(arch: Architecture, sublayer: Sublayer, index: int) -> Placement:
    size = arch.model
    scale = branch_scale(size.width, arch.layer_scale, arch.parametrization.branch_scale(size, sublayer))
    return arch.placement.build(arch.norm, Site(sublayer, index, size.depth, size.width), scale)


class GPT(nn.Module):
    """GPT with untied embedding and head and fp32 logits; some placements omit the norm before the head."""

    def __init__(
        self,
        arch: Architecture,
        *,
        vocab_size: int,
        context: int,
        keep_maxima: bool = False,
        recompute: Recompute = "none",
    ) -> None:
        """Builds the modules. With `keep_maxima`, each training forward pass records the largest logit of each head."""
        super().__init__()
        self.recompute = recompute
        width = arch.model.width
        self.context = context
        self.keep_maxima = keep_maxima
        self.has_two_streams = arch.dual_stream is not None
        self.embedding = Embedding(vocab_size, width)
        self.sink_token = Embedding(arch.sink.tokens, width) if arch.sink.tokens else None
        # From here on, the number of tokens that attention sees.
        context += arch.sink.tokens
        self.positions = arch.layout.positions(arch.position, width, arch.model.heads, context)
        self.embedding_norm = arch.norm.build(width) if arch.embedding_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(arch, self.positions, context, i) for i in range(arch.model.depth))
        for layer in self.expert_layers():
            layer.context = context
        self.final_norm = arch.norm.build(width) if arch.placement.final_norm else nn.Identity()
        self.unit_output = arch.head.normalizes
        head_map = arch.head.map(vocab_size) or arch.placement.head_map(width, vocab_size)
        self.head = Linear(width, arch.head.rows(vocab_size), map=head_map)
        self.head_output = arch.head.output(vocab_size)
        self.qk_source = arch.qk_source.build(self.context, width)
        # Last, so that all other parameters start as without it.
        self.mask_token = Embedding(1, width) if arch.masking.masks else None
        set_multipliers(arch.parametrization, self, arch.model)
        self.reparametrization = arch.reparametrization.build(self)

    def forward(self, tokens_BT: torch.Tensor, watch: bool = False) -> tuple[torch.Tensor, Stats]:
        """Returns next-token logits, fp32 [B, T, V], and, if `watch` is set, the probes of every block."""
        x_BTD, stats = self.hidden(tokens_BT, watch)
        return self.logits(x_BTD), stats

    def embed(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Returns the embeddings of tokens; the id after the last one of the vocabulary is that of the mask token."""
        if self.mask_token is None:
            return self.embedding(tokens_BT)
        x_BTD = self.embedding(tokens_BT.clamp_max(self.embedding.num_embeddings - 1))
        mask_D = self.mask_token.scaled(self.mask_token.weight[0])
        return torch.where((tokens_BT == self.embedding.num_embeddings)[..., None], mask_D, x_BTD)

    def enter(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Turns token embeddings into the initial residual stream, prepending the sink tokens if there are any."""
        if self.sink_token is not None:
            sink_1D = self.sink_token.scaled(self.sink_token.weight)
            x_BTD = torch.cat([sink_1D.expand(len(x_BTD), -1, -1), x_BTD], 1)
        return self.embedding_norm(self.positions.embed(x_BTD))

    def hidden(self, tokens_BT: torch.Tensor, watch: bool = False) -> tuple[torch.Tensor, Stats]:
        """Returns the head's input times the head's multiplier, [B, T, D], and the probes.

        The probe `AUXILIARY` is a loss of the layers to add to the objective; it has a gradient.
        """
        x_BTD = self.enter(self.embed(tokens_BT))
        trains = self.training and torch.is_grad_enabled()
        carry = Carry(
            watch=watch,
            keep_maxima=self.keep_maxima and self.training,
            recompute_core=trains and self.recompute == "attention",
        )
        if self.has_two_streams:
            carry.token_BTD = x_BTD
        side = self.qk_source.start(self, x_BTD, tokens_BT.shape[1])
        for block in self.blocks:
            if side is not None:
                carry.source_BTD = side.advance(block)
            again = trains and self.recompute == "block"
            x_BTD = block_again(block, x_BTD, carry) if again else block(x_BTD, carry)
        if self.sink_token is not None:
            x_BTD = x_BTD[:, self.sink_token.num_embeddings :]
        x_BTD = self.final_norm(x_BTD)
        if self.unit_output:
            x_BTD = F.normalize(x_BTD.float(), dim=-1)
        if carry.losses:
            carry.stats[AUXILIARY] = torch.stack(carry.losses).sum()
        return (x_BTD if self.head.multiplier == 1.0 else self.head.multiplier * x_BTD), carry.stats

    def logits(self, x_BTD: torch.Tensor, head_VD: torch.Tensor | None = None) -> torch.Tensor:
        """Applies the head to the output of `hidden`. Pass `head_VD` to reuse a head matrix computed before."""
        logits = fp32_head(x_BTD, self.head.matrix() if head_VD is None else head_VD)
        return logits if self.head_output is None else self.head_output(logits)

    def end_step(self) -> None:
        """Updates the state of mixing rules and routers, once per optimizer step."""
        for layer in self.expert_layers():
            layer.end_step()
        for mixer in self.mixers():
            if mixer.rule is not None:
                mixer.rule.end_step()

    def mixers(self) -> list[TokenMixer]:
        """Returns the blocks' token mixers, first block first."""
        return [block.attention for block in self.blocks if isinstance(block, Block)]

    def expert_layers(self) -> list[MoE]:
        """Returns the blocks' mixtures of experts, first block first."""
        return [block.mlp for block in self.blocks if isinstance(block, Block) and isinstance(block.mlp, MoE)]

    def parameter_count(self) -> int:
        """Returns N, which excludes embeddings and head (Wortsman et al. 2023, section 2.1)."""
        excluded_modules = (
            self.embedding,
            self.sink_token,
            self.mask_token,
            self.head,
            self.head_output,
            self.positions,
        )
        excluded = {id(p) for m in excluded_modules if m is not None for p in m.parameters()}
        return sum(p.numel() for p in self.parameters() if id(p) not in excluded)

    def active_parameter_count(self) -> int:
        """Returns N without the experts that a token does not use."""
        return self.parameter_count() - sum(layer.idle_parameters() for layer in self.expert_layers())


def initialize(model: GPT, arch: Architecture, seed: int) -> None:
    """Fills every parameter as a pure function of the seed: init first, then placement and parametrization."""
    generator = torch.Generator().manual_seed(seed)
    arch.init.apply(model, generator)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, TokenMixer | MoE | AugmentedShortcut):
                module.draw(generator)
        arch.head.start(model)
        model.qk_source.draw(generator, arch.init.embedding_std(arch.model.width))
    arch.placement.rescale(list(model.blocks))
    scale_init(arch.parametrization, model, arch.model, arch.init)
    arch.mlp.start(model, generator)
    if model.mask_token is not None:
        with torch.no_grad():
            arch.init.embedding(model.mask_token.weight, generator)
    arch.placement.constrain(model)
    arch.reparametrization.start(model)


class _Head(torch.autograd.Function):
    """Computes fp32 logits; the matrix products of its backward pass run in the autocast dtype, as in other layers."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x_ND: torch.Tensor, weight_VD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return x_ND @ weight_VD.T

    @staticmethod
    def setup_context(ctx, inputs: tuple[torch.Tensor, torch.Tensor, torch.dtype], output: torch.Tensor) -> None:
        x_ND, weight_VD, ctx.dtype = inputs
        ctx.save_for_backward(x_ND, weight_VD)

    @staticmethod
    def backward(ctx, grad_NV: torch.Tensor):
        x_ND, weight_VD = ctx.saved_tensors
        grad_NV = grad_NV.to(ctx.dtype)
        return (grad_NV @ weight_VD.to(ctx.dtype)).float(), (grad_NV.T @ x_ND.to(ctx.dtype)).float(), None


def fp32_head(x_BTD: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
    """Returns x W^T in fp32, [B, T, V], even under autocast."""
    device = x_BTD.device.type
    if not torch.is_autocast_enabled(device):
        return F.linear(x_BTD, weight_VD)
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        logits_NV = _Head.apply(x_BTD.flatten(0, -2), weight_VD, dtype)
    return logits_NV.unflatten(0, x_BTD.shape[:-1])
