"""The attention layer: projections, query and key transforms, a mixing rule, and the output projection.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from models.attention.gates import Gate
from models.attention.mixing.base import Inputs, MixingRule
from models.attention.qk_norm import NoQKNorm, QKTransform
from models.attention.sinks import Sink
from models.attention.temperature import Temperature
from models.carry import Carry, Lender
from models.layers import Linear, Make, plain
from models.mixer import LogitRows, TokenMixer
from models.positions import Positions
from models.probes import largest_logit, spectral_norms
from models.recompute import core

QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """The parts of an attention layer apart from the projections that its layout defines."""

    mix: MixingRule
    qk_norm: QKTransform
    positions: Positions
    """Shared by all blocks; owned by the model."""
    make: Make = plain
    """Creates the projections."""
    sink: Sink = dataclasses.field(default_factory=Sink)
    """Adds something to attend to besides the tokens; the base class adds nothing."""
    temperature: Temperature | None = None
    """Multiplies q after the positions, and can multiply values."""
    gate: Gate | None = None
    """Multiplies the heads' outputs by a function of the layer's input."""
    value_residual: nn.Module | None = None
    """Combines the first block's values with the layer's own."""
    after_positions: nn.Module | None = None
    """The placement's transform of q and k after the positions."""
    lends: bool = False
    """Whether other blocks reuse this layer's attention weights."""


class Attention(TokenMixer):
    def __init__(
        self,
        width: int,
        heads: int,
        parts: Parts,
        projections: Mapping[str, Linear] | None = None,
        more: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """Builds the layer. A layout passes `projections` that are not [width, width] and `more` modules of its own.

        The registration order of modules fixes the order of the init axis's draws and of saved optimizer states.
        """
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        given, make = projections or {}, parts.make
        # Not fused into one matrix, because findings read gradients and norms of queries and keys separately.
        self.key_dim = parts.mix.key_dim or self.head_dim
        self.query = given.get("query") or make("query", width, heads * self.key_dim)
        shared = self.query if parts.mix.shares_keys else None
        self.key = shared or given.get("key") or make("key", width, heads * self.key_dim)
        self.value = given.get("value") or make("value", width, width)
        self.out = make("out", width, width)
        self.qk_norm = parts.qk_norm
        self.mix = parts.mix
        self.sink = parts.sink
        for name, module in (more or {}).items():
            self.add_module(name, module)
        self.temperature = parts.temperature
        self.gate = parts.gate
        self.value_residual = parts.value_residual
        self.after_positions = parts.after_positions
        self.lends = parts.lends
        # Wrapped in a list so that it is not registered as a submodule of every block.
        self._positions = [parts.positions]

    @property
    def rule(self) -> MixingRule:
        return self.mix

    def draw(self, generator: torch.Generator) -> None:
        self.mix.draw(generator)

    def split(self, y_BTD: torch.Tensor, features: int | None = None) -> torch.Tensor:
        """Splits a projection into heads, [B, H, T, features per head], by default head_dim features each."""
        return y_BTD.unflatten(-1, (-1, features or self.head_dim)).transpose(1, 2)

    def project(self, x_BTD: torch.Tensor, source_BTD: torch.Tensor) -> QKV:
        """Returns queries and keys of the source and values of x, [B, H, T, K] each."""
        q_BTD, k_BTD = self.query(source_BTD), self.key(source_BTD)
        return self.split(q_BTD, self.key_dim), self.split(k_BTD, self.key_dim), self.split(self.value(x_BTD))

    def rotate(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (positions,) = self._positions
        return positions.rotate(q_BHTK, k_BHTK)

    @property
    def bare(self) -> bool:
        """Returns whether queries and keys are matrices times the layer's input, with positions after that at most."""
        plain_qk = type(self.query) is type(self.key) is Linear and isinstance(self.qk_norm, NoQKNorm)
        return plain_qk and self.temperature is None and self.after_positions is None

    def weight_bound(self) -> torch.Tensor:
        """Returns scale ||W_q|| ||W_k|| of each head, spectral norms, fp32 [H].

        Times the largest squared norm of the layer's input, it bounds the logits of a layer that is `bare`.
        """
        query_H, key_H = (
            abs(made.multiplier) * spectral_norms(made.matrix().unflatten(0, (-1, self.key_dim)))
            for made in (self.query, self.key)
        )
        return self.mix.scale * query_H * key_H.repeat_interleave(len(query_H) // len(key_H))

    def logit_rows(self) -> LogitRows:
        return [(self.query, slice(None), 0.5), (self.key, slice(None), 0.5)]

    def forward(self, x_BTD: torch.Tensor, carry: Carry) -> torch.Tensor:
        """Computes attention. Queries and keys come from the carry's source if it is set, else from x like values and
        gates."""
        source_BTD = x_BTD if carry.source_BTD is None else carry.source_BTD
        q_BHTK, k_BHTK, v_BHTK = self.project(x_BTD, source_BTD)
        q_BHTK, k_BHTK = self.qk_norm(q_BHTK, k_BHTK)
        v_BHTK = self.qk_norm.values(v_BHTK)
        factor = None if self.temperature is None else self.temperature(q_BHTK)
        if self.mix.key_dim is None:
            q_BHTK, k_BHTK = self.rotate(q_BHTK, k_BHTK)
        if self.after_positions is not None:
            q_BHTK, k_BHTK = self.after_positions(q_BHTK, k_BHTK)
        if factor is not None:
            q_BHTK = q_BHTK * factor
        q_BHTK, k_BHTK = (z_BHTK.expand(len(x_BTD), -1, -1, -1) for z_BHTK in (q_BHTK, k_BHTK))
        inputs = Inputs(q_BHTK, k_BHTK, self._positions[0].bias(x_BTD.shape[1]), x_BTD)
        if self.training and torch.is_grad_enabled() and not (carry.side or carry.again):
            self.mix.observe(inputs)
        if self.lends:
            carry.lender = Lender(self.mix, inputs)
        if carry.watch:
            carry.record("attention", self.sink.watch(self.mix, inputs))
            if self.bare:
                carry.record("attention", {"weight_bound": self.weight_bound()})
        if carry.keep_maxima:
            carry.record("attention", {"step_max": largest_logit(q_BHTK, k_BHTK, self.mix.scale)})
        seen_BHTK = v_BHTK if self.value_residual is None else self.value_residual(carry.first_BHTK, v_BHTK)
        if carry.first_BHTK is None:
            carry.first_BHTK = v_BHTK
        if self.temperature is not None:
            seen_BHTK = self.temperature.values(seen_BHTK)
        mixed_BHTK = core(carry, self.sink, self.mix, inputs, seen_BHTK)
        if self.gate is not None:
            mixed_BHTK = self.gate(mixed_BHTK, x_BTD)
        return self.out(mixed_BHTK.transpose(1, 2).flatten(2))
