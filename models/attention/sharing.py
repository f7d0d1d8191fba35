"""Shared attention weights: the first block of a group makes queries and keys, and the others reuse its weights.

UniAttn (Xiong et al. 2025, arXiv 2502.00439; Bostoncake/UniAttn) does this to a trained model to make it cheaper; here
the model is trained from scratch. Each block has its own values and output projection. A block that borrows weights
adds W_c h, where h is its attention input, to compensate. UniAttn fits W_c to the trained model's attention; here it is
learned from zero. Groups start at the first block; UniAttn's start at the middle of the model.

Blocks hand on queries and keys instead of a T x T matrix, so that each rule keeps its fast path.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

from models.attention.gates import Gate
from models.carry import Carry
from models.layers import Linear, Make, plain
from models.mixer import TokenMixer
from models.recompute import core

if TYPE_CHECKING:
    from models.architecture import Architecture


class Borrowing(TokenMixer):
    """An attention layer without queries and keys: W_out (weights of the lender) V + W_c h. It records no probes."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        make: Make = plain,
        gate: Gate | None = None,
        value_residual: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.value = make("value", width, width)
        self.out = make("out", width, width)
        self.compensation = Linear(width, width)
        self.gate = gate
        self.value_residual = value_residual

    def draw(self, generator: torch.Generator) -> None:
        self.compensation.weight.zero_()

    def forward(self, x_BTD: torch.Tensor, carry: Carry) -> torch.Tensor:
        assert carry.lender is not None
        mix, inputs = carry.lender
        v_BHTK = self.value(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        seen_BHTK = v_BHTK if self.value_residual is None else self.value_residual(carry.first_BHTK, v_BHTK)
        mixed_BHTK = core(carry, mix, inputs, seen_BHTK)
        if self.gate is not None:
            mixed_BHTK = self.gate(mixed_BHTK, x_BTD)
        return self.out(mixed_BHTK.transpose(1, 2).flatten(2)) + self.compensation(x_BTD)


def fits(group: int, config: "Architecture") -> None:
    """Raises ValueError if the config has a choice that cannot go with shared weights."""
    if group == 1:
        return

    def refuse(why: str, use: str) -> None:
        raise ValueError(f"share_attention={group} {why}: use {use} or share_attention=1")

    depth = config.model.depth
    if 0 < depth < 2:
        refuse(f"needs a second block, but model.depth={depth}", "a deeper model")
    if not config.layout.whole_values:
        refuse(f"needs one matrix that makes the values, which layout={config.layout.name} lacks", "layout=mha")
    if not config.qk_source.is_stream:
        refuse(f"reuses queries and keys, qk_source={config.qk_source.name} makes them elsewhere", "qk_source=stream")
    if config.attention.pattern != "all" or not config.attention.has_weights:
        refuse(
            f"needs the same rule in all blocks of a group, but attention={config.attention.name} with its pattern "
            f"differs between blocks or has no weights",
            "attention=softmax attention.pattern=all",
        )
    if config.sink.in_layer:
        refuse(f"hands on queries and keys, but not what sink={config.sink.name} adds to them", "sink=none")
    if config.temperature.acts_on_values:
        refuse(
            f"hands on queries and keys, but temperature={config.temperature.name} acts on values", "temperature=ssmax"
        )
    if config.qk_norm.acts_on_values:
        refuse(
            f"has blocks without queries and keys, but qk_norm={config.qk_norm.name} normalizes them with values",
            "qk_norm=layernorm",
        )
    if config.placement.sets_weights_each_step:
        refuse(
            f"has a matrix that starts at zero, but placement={config.placement.name} keeps all at unit norm",
            "placement=pre",
        )
    if config.reparametrization.divides:
        refuse(
            f"has a matrix that starts at zero, but reparametrization={config.reparametrization.name} may divide by "
            f"its norm",
            "reparametrization=none",
        )
