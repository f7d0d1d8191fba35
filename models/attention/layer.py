"""The attention layer: projections, query and key transforms, a mixing rule, the output projection.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from models.attention.gates import Gate
from models.attention.mixing.base import Inputs, MixingRule
from models.attention.qk_norm import QKTransform
from models.attention.sinks import Sink
from models.attention.temperature import Temperature
from models.carry import Carry, Lender
from models.layers import Linear, Make, plain
from models.mixer import LogitRows, TokenMixer
from models.positions import Positions
from models.probes import largest_logit

QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What an attention layer is put together from, besides the matrices of its layout."""

    mix: MixingRule
    qk_norm: QKTransform
    positions: Positions
    """Shared by all blocks and owned by the model."""
    make: Make = plain
    """Makes the projections."""
    sink: Sink = dataclasses.field(default_factory=Sink)
    """Somewhere else to attend to than the tokens; the base is nowhere."""
    temperature: Temperature | None = None
    """Multiplies q after the positions, and values."""
    gate: Gate | None = None
    """Multiplies what the heads have mixed, by the layer's input."""
    value_residual: nn.Module | None = None
    """Makes the values that are attended to of the first block's and the layer's own."""
    after_positions: nn.Module | None = None
    """What a placement does to q and k once the positions have turned them."""
    lends: bool = False
    """Whether other blocks use its weights."""


class Attention(TokenMixer):
    def __init__(
        self,
        width: int,
        heads: int,
        parts: Parts,
        projections: Mapping[str, Linear] | None = None,
        more: Mapping[str, nn.Module] | None = None,
    ) -> None:
        """A layout gives the `projections` that aren't [width, width], and `more` modules of its own.

        The order in which modules are registered is that of the init axis's draws and of saved optimizers.
        """
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        given, make = projections or {}, parts.make
        # Separate, not one fused matrix: the findings look at the key's and query's gradients and norms on their own.
        self.query = given.get("query") or make("query", width, width)
        self.key = given.get("key") or make("key", width, width)
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
        # In a list, so that it is not registered as a submodule of every block.
        self._positions = [parts.positions]

    @property
    def rule(self) -> MixingRule:
        return self.mix

    def draw(self, generator: torch.Generator) -> None:
        self.mix.draw(generator)

    def split(self, y_BTD: torch.Tensor, features: int | None = None) -> torch.Tensor:
        """The heads of a projection, [B, H, T, features of a head], which are head_dim by default."""
        return y_BTD.unflatten(-1, (-1, features or self.head_dim)).transpose(1, 2)

    def project(self, x_BTD: torch.Tensor, source_BTD: torch.Tensor) -> QKV:
        """Queries and keys of the source and values of x, of all heads, [B, H, T, K] each."""
        return self.split(self.query(source_BTD)), self.split(self.key(source_BTD)), self.split(self.value(x_BTD))

    def rotate(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (positions,) = self._positions
        return positions.rotate(q_BHTK, k_BHTK)

    def logit_rows(self) -> LogitRows:
        return [(self.query, slice(None), 0.5), (self.key, slice(None), 0.5)]

    def forward(self, x_BTD: torch.Tensor, carry: Carry) -> torch.Tensor:
        """Queries and keys are made of the carry's source where it has one, values, rules and gates of x."""
        source_BTD = x_BTD if carry.source_BTD is None else carry.source_BTD
        q_BHTK, k_BHTK, v_BHTK = self.project(x_BTD, source_BTD)
        q_BHTK, k_BHTK = self.qk_norm(q_BHTK, k_BHTK)
        v_BHTK = self.qk_norm.values(v_BHTK)
        factor = None if self.temperature is None else self.temperature(q_BHTK)
        q_BHTK, k_BHTK = self.rotate(q_BHTK, k_BHTK)
        if self.after_positions is not None:
            q_BHTK, k_BHTK = self.after_positions(q_BHTK, k_BHTK)
        if factor is not None:
            q_BHTK = q_BHTK * factor
        q_BHTK, k_BHTK = (z_BHTK.expand(len(x_BTD), -1, -1, -1) for z_BHTK in (q_BHTK, k_BHTK))
        inputs = Inputs(q_BHTK, k_BHTK, self._positions[0].bias(x_BTD.shape[1]), x_BTD)
        if self.lends:
            carry.lender = Lender(self.mix, inputs)
        if carry.watch:
            carry.record("attention", self.sink.watch(self.mix, inputs))
        if carry.keep_maxima:
            carry.record("attention", {"step_max": largest_logit(q_BHTK, k_BHTK, self.mix.scale)})
        seen_BHTK = v_BHTK if self.value_residual is None else self.value_residual(carry.first_BHTK, v_BHTK)
        if carry.first_BHTK is None:
            carry.first_BHTK = v_BHTK
        if self.temperature is not None:
            seen_BHTK = self.temperature.values(seen_BHTK)
        mixed_BHTK = self.sink(self.mix, inputs, seen_BHTK)
        if self.gate is not None:
            mixed_BHTK = self.gate(mixed_BHTK, x_BTD)
        return self.out(mixed_BHTK.transpose(1, 2).flatten(2))
