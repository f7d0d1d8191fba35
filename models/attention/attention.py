"""The attention layer: projections, query and key transforms, a mixing rule, the output projection.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

import torch
from torch import nn

from models.attention.mixing import MixingRule
from models.layers import Linear
from models.positions import Positions
from models.probes import Stats, largest_logit
from models.qk_norm import QKTransform
from models.sink import Sink
from models.temperature import Temperature


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, qk_norm: QKTransform, positions: Positions, mix: MixingRule) -> None:
        super().__init__()
        self.heads = heads
        # Separate, not one fused matrix: the findings look at the key's and query's gradients and norms on their own.
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.out = Linear(width, width)
        self.qk_norm = qk_norm
        self.mix = mix
        self.keep_maximum = False
        """Give the largest logit of each head at every training step."""
        self.value_residual: nn.Module | None = None
        """Makes the values that are attended to of the first block's and the layer's own."""
        self.behind_positions: nn.Module | None = None
        """What a placement does to q and k once the positions have turned them."""
        self.temperature: Temperature | None = None
        """Multiplies q behind all that, and values."""
        self.sink: Sink | None = None
        """Somewhere else to attend to than the tokens."""
        self.gate: nn.Module | None = None
        """Multiplies what the heads have mixed, by the layer's input."""
        # Shared by all blocks and owned by the model, so not registered as a submodule here.
        self._positions = [positions]

    def forward(
        self, x_BTD: torch.Tensor, watch: bool = False, first_BHTK: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Stats, torch.Tensor]:
        """The output, the probes and the layer's own values; with a value residual `first` are the first block's.

        The values are those behind a norm of theirs.
        """
        q_BHTK, k_BHTK, v_BHTK = (
            proj(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.query, self.key, self.value)
        )
        q_BHTK, k_BHTK = self.qk_norm(q_BHTK, k_BHTK)
        v_BHTK = self.qk_norm.values(v_BHTK)
        factor = None if self.temperature is None else self.temperature(q_BHTK)
        (positions,) = self._positions
        q_BHTK, k_BHTK = positions.rotate(q_BHTK, k_BHTK)
        if self.behind_positions is not None:
            q_BHTK, k_BHTK = self.behind_positions(q_BHTK, k_BHTK)
        if factor is not None:
            q_BHTK = q_BHTK * factor
        bias_HTT = positions.bias(x_BTD.shape[1])
        stats: Stats = {}
        if watch and self.sink is None:
            stats = self.mix.watch(q_BHTK, k_BHTK, bias_HTT, x_BTD)
        elif watch and self.sink is not None:
            stats = self.sink.watch(self.mix, q_BHTK, k_BHTK, bias_HTT, x_BTD)
        if self.keep_maximum and self.training:
            stats["step_max"] = largest_logit(q_BHTK, k_BHTK, self.mix.scale)
        seen_BHTK = v_BHTK if self.value_residual is None else self.value_residual(first_BHTK, v_BHTK)
        if self.temperature is not None:
            seen_BHTK = self.temperature.values(seen_BHTK)
        if self.sink is None:
            mixed_BHTK = self.mix(q_BHTK, k_BHTK, seen_BHTK, bias_HTT, x_BTD)
        else:
            mixed_BHTK = self.sink(self.mix, q_BHTK, k_BHTK, seen_BHTK, bias_HTT, x_BTD)
        if self.gate is not None:
            mixed_BHTK = self.gate(mixed_BHTK, x_BTD)
        return self.out(mixed_BHTK.transpose(1, 2).flatten(2)), stats, v_BHTK
