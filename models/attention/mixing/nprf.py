"""Kernelized attention with positive random features, unit queries and keys, and relative positions: NPRF with RPE.

    w_ij = phi(q_i) phi(k_j) exp(b_(i-j));    o_i = sum_j<=i w_ij v_j / sum_j<=i w_ij
    phi(x) = exp(W x - |x|^2 / 2) / sqrt(m),  W of m rows drawn once from N(0, I), the same for all heads

phi(q) phi(k) estimates exp(q k) with a relative variance of (exp(|q + k|^2) - 1) / m. unit=true divides queries and
keys by their norms (sqrt(|q|^2 + 1e-6)), which bounds it by 53.6 / m; unit=false scales both by sqrt(scale), as in
Performer (Choromanski et al. 2021, arXiv 2009.14794). relative=true learns b, one number per head and distance, from
zero; distances beyond the context, in evaluation, take the last. Luo et al. 2021 (arXiv 2106.12566); the mask
exp(b) as in google-research/google-research, performer. We had no access to their own code: W without orthogonal rows
and never redrawn, no temperature of unit vectors, and b from zero are our readings.

Without b the cost is linear in T. With b the sums over keys are convolutions along tokens, computed by FFT in T log T
from FFT_FROM tokens on; below, the explicit weights cost less. No exponent of phi passes |W row|^2 / 2, so nothing
overflows. With unit=false the features of long keys can all underflow; such a row outputs zero, and zero_rows counts
it.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.gated_delta import unit
from models.attention.mixing.linear import LinearAttention
from models.layers import Drawn

FFT_FROM = 2048


class Directions(Drawn):
    """The fixed random rows W, [m, K]."""

    weight_FK: torch.Tensor

    def __init__(self, features: int, head_dim: int) -> None:
        super().__init__()
        self.register_buffer("weight_FK", torch.randn(features, head_dim))

    def draw(self, generator: torch.Generator) -> None:
        self.weight_FK.normal_(generator=generator)


class RandomFeatures(LinearAttention):
    least = 1e-30

    def __init__(self, layer: LayerShape, features: int, unit_norm: bool, relative: bool) -> None:
        super().__init__(layer.scale)
        self.unit_norm = unit_norm
        self.directions = Directions(features, layer.head_dim)
        self.bias_HT = nn.Parameter(torch.zeros(layer.heads, layer.context)) if relative else None

    def features(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        def exponents(x_BHTK: torch.Tensor) -> torch.Tensor:
            x_BHTK = unit(x_BHTK.float()) if self.unit_norm else self.scale**0.5 * x_BHTK.float()
            return x_BHTK @ self.directions.weight_FK.mT - x_BHTK.square().sum(-1, keepdim=True) / 2

        q_BHTF, k_BHTF = exponents(inputs.q_BHTK), exponents(inputs.k_BHTK)
        # A factor per query cancels in the ratio of sums.
        q_BHTF = q_BHTF - q_BHTF.detach().amax(-1, keepdim=True)
        return q_BHTF.exp(), k_BHTF.exp() / q_BHTF.shape[-1]

    def distances(self, length: int) -> torch.Tensor:
        """Returns exp(b) of the distances 0 ... length - 1, [H, T]."""
        assert self.bias_HT is not None
        known = self.bias_HT.shape[-1]
        index_T = torch.arange(length, device=self.bias_HT.device).clamp_max(known - 1)
        return self.bias_HT[:, index_T].exp()

    def forward(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        if self.bias_HT is not None and v_BHTK.shape[-2] < FFT_FROM:
            return MixingRule.forward(self, inputs, v_BHTK)
        return super().forward(inputs, v_BHTK)

    def summed(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        if self.bias_HT is None:
            return super().summed(inputs, v_BHTK)
        q_BHTF, k_BHTF = self.features(inputs)
        length = v_BHTK.shape[-2]
        # In fp64, as rounding is relative to the largest sum of the sequence, and those of its first rows can be small.
        filter_HT = torch.fft.rfft(self.distances(length).double(), 2 * length)
        # One feature at a time: all of them would need m times the memory.
        out_BHTK = torch.zeros_like(v_BHTK)
        for f in range(q_BHTF.shape[-1]):
            spectrum_BHTK = torch.fft.rfft((k_BHTF[..., f, None] * v_BHTK).double(), 2 * length, dim=-2)
            sums_BHTK = torch.fft.irfft(spectrum_BHTK * filter_HT[..., None], 2 * length, dim=-2)[..., :length, :]
            out_BHTK = torch.addcmul(out_BHTK, q_BHTF[..., f, None], sums_BHTK.to(out_BHTK.dtype))
        return out_BHTK

    def raw_weights(self, inputs: Inputs) -> torch.Tensor:
        w_BHTT = super().raw_weights(inputs)
        if self.bias_HT is None:
            return w_BHTT
        length = w_BHTT.shape[-1]
        position_T = torch.arange(length, device=w_BHTT.device)
        back_TT = (position_T[:, None] - position_T).clamp_min(0)
        return w_BHTT * self.distances(length)[:, back_TT]


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NPRFConfig(MixingConfig):
    """Weights proportional to phi(q_i) phi(k_j) exp(b_(i-j)), phi positive random features of unit vectors, b learned.

    Luo et al. 2021 (NPRF with RPE, arXiv 2106.12566); PRF of Choromanski et al. 2021 (arXiv 2009.14794) without both.
    The authors use position=none.
    """

    name: Literal["nprf"] = "nprf"
    saturates = False
    unit: bool = True
    """Divide queries and keys by their norms."""
    relative: bool = True
    """Learn a factor exp(b) per head and distance."""
    features: Annotated[int, Field(ge=1)] | None = None
    """Number m of random features. null: the head dimension."""

    @property
    def reads_scale(self) -> bool:  # type: ignore[override]
        return not self.unit

    @property
    def reads_lengths(self) -> bool:  # type: ignore[override]
        return not self.unit

    def build(self, layer: LayerShape) -> MixingRule:
        return RandomFeatures(layer, self.features or layer.head_dim, self.unit, self.relative)
