"""The attention layer: projections, query and key transforms, a mixing rule, the output projection.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

import torch
from torch import nn

from models.attention.mixing.base import Inputs, MixingRule
from models.attention.qk_norm import QKTransform
from models.attention.sharing import Lender
from models.attention.sinks import Sink
from models.attention.temperature import Temperature
from models.layers import Linear
from models.positions import Positions
from models.probes import Stats, largest_logit


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, qk_norm: QKTransform, positions: Positions, mix: MixingRule) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
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
        self.after_positions: nn.Module | None = None
        """What a placement does to q and k once the positions have turned them."""
        self.temperature: Temperature | None = None
        """Multiplies q behind all that, and values."""
        self.sink = Sink()
        """Somewhere else to attend to than the tokens; the base is nowhere."""
        self.gate: nn.Module | None = None
        """Multiplies what the heads have mixed, by the layer's input."""
        # Shared by all blocks and owned by the model, so not registered as a submodule here.
        self._positions = [positions]

    def split(self, y_BTD: torch.Tensor, features: int | None = None) -> torch.Tensor:
        """The heads of a projection, [B, H, T, features of a head], which are head_dim by default."""
        return y_BTD.unflatten(-1, (-1, features or self.head_dim)).transpose(1, 2)

    def project(self, x_BTD: torch.Tensor, source_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries and keys of the source and values of x, of all heads, [B, H, T, K] each."""
        return self.split(self.query(source_BTD)), self.split(self.key(source_BTD)), self.split(self.value(x_BTD))

    def rotate(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (positions,) = self._positions
        return positions.rotate(q_BHTK, k_BHTK)

    def logit_rows(self) -> list[tuple[Linear, slice, float]]:
        """What multiplies a head's logits by c: its rows of a matrix, by their place in the head, times c^power."""
        return [(self.query, slice(None), 0.5), (self.key, slice(None), 0.5)]

    def forward(
        self,
        x_BTD: torch.Tensor,
        watch: bool = False,
        first_BHTK: torch.Tensor | None = None,
        source_BTD: torch.Tensor | None = None,
        lenders: list[Lender] | None = None,
    ) -> tuple[torch.Tensor, Stats, torch.Tensor]:
        """The output, the probes and the layer's own values; with a value residual `first` are the first block's.

        The values are those behind a norm of theirs. `source` is what queries and keys are made of, x by default; one
        sequence serves the whole batch. What other blocks need to use the same weights is added to `lenders`.
        """
        q_BHTK, k_BHTK, v_BHTK = self.project(x_BTD, x_BTD if source_BTD is None else source_BTD)
        q_BHTK, k_BHTK = self.qk_norm(q_BHTK, k_BHTK)
        v_BHTK = self.qk_norm.values(v_BHTK)
        factor = None if self.temperature is None else self.temperature(q_BHTK)
        q_BHTK, k_BHTK = self.rotate(q_BHTK, k_BHTK)
        if self.after_positions is not None:
            q_BHTK, k_BHTK = self.after_positions(q_BHTK, k_BHTK)
        if factor is not None:
            q_BHTK = q_BHTK * factor
        q_BHTK, k_BHTK = (z_BHTK.expand(len(x_BTD), -1, -1, -1) for z_BHTK in (q_BHTK, k_BHTK))
        bias_HTT = self._positions[0].bias(x_BTD.shape[1])
        inputs = Inputs(q_BHTK, k_BHTK, bias_HTT, x_BTD)
        if lenders is not None:
            lenders.append(Lender(self.mix, inputs))
        stats = self.sink.watch(self.mix, inputs) if watch else {}
        if self.keep_maximum and self.training:
            stats["step_max"] = largest_logit(q_BHTK, k_BHTK, self.mix.scale)
        seen_BHTK = v_BHTK if self.value_residual is None else self.value_residual(first_BHTK, v_BHTK)
        if self.temperature is not None:
            seen_BHTK = self.temperature.values(seen_BHTK)
        mixed_BHTK = self.sink(self.mix, inputs, seen_BHTK)
        if self.gate is not None:
            mixed_BHTK = self.gate(mixed_BHTK, x_BTD)
        return self.out(mixed_BHTK.transpose(1, 2).flatten(2)), stats, v_BHTK
