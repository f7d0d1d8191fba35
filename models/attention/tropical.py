"""Tropical attention: max-plus algebra in the place of products and sums, with distances between queries and keys.

    u = log(1 + relu(u')) for each of queries, keys and values u',    (W (+) u)_c = max_c' (W_cc' + u_c')
    s_ij = min_c(q_ic - k_jc) - max_c(q_ic - k_jc) + bias,   o_ic = exp(max_j<=i (s_ij + v_jc)) - 1

with q = W_q (+) u_q and so on, three matrices of the head dimension that all heads share, and s the negative Hilbert
projective distance. No scale of q k^T is read. Hashemi et al. 2025 (arXiv 2505.17190; Baran-phys/Tropical-Attention),
whose queries, keys and values are all log(1 + relu) of the layer's input, cut into heads; here they are the layer's
projections, behind qk_norm and positions, and that is our reading, as are the causal mask and the bias of positions.
The authors use no positions. W starts as N(0, 1).

As exp(max_j (s_ij + v_jc)) = max_j exp(s_ij) exp(v_jc), `weights` are exp(s_ij): what the values are multiplied with
before the largest one is taken; so are the probes of weights, of their shares. Probes of logits are those of the other
rules, of scale q k + bias. It costs head_dim times what a T x T matrix does.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn
from torch.utils.checkpoint import checkpoint

from conf.axis import CHECKED
from models.attention.mixing import ATTENTION, LayerShape, MixingRule, at_once
from models.attention.scale_free import ScaleFreeConfig
from models.probes import causal


def sequences_at_once(q_BHTK: torch.Tensor) -> int:
    """As many as have T x T weights of every channel in one block."""
    return max(1, at_once(q_BHTK) // q_BHTK.shape[-1])


def closeness(q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> torch.Tensor:
    """s without a bias, [B, H, T, T]: at most 0."""
    rows, found = sequences_at_once(q_BHTK), []
    for q, k in zip(q_BHTK.split(rows), k_BHTK.split(rows), strict=True):
        difference_BHTTK = q[..., :, None, :] - k[..., None, :, :]
        found.append(difference_BHTTK.amin(-1) - difference_BHTTK.amax(-1))
    return torch.cat(found)


class MaxPlus(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight_KK = nn.Parameter(torch.zeros(size, size))

    def forward(self, u_K: torch.Tensor) -> torch.Tensor:
        return (u_K[..., None, :] + self.weight_KK).amax(-1)


class Tropical(MixingRule):
    def __init__(self, layer: LayerShape, projections: bool) -> None:
        super().__init__(layer.scale)
        self.query, self.key, self.value = (MaxPlus(layer.head_dim) if projections else nn.Identity() for _ in range(3))

    def draw(self, generator: torch.Generator) -> None:
        for parameter in self.parameters():
            parameter.normal_(generator=generator)

    def forward(
        self,
        q_BHTK: torch.Tensor,
        k_BHTK: torch.Tensor,
        v_BHTK: torch.Tensor,
        bias_HTT: torch.Tensor | None = None,
        x_BTD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        rows = sequences_at_once(q_BHTK)
        if rows >= len(q_BHTK):
            return self.largest(q_BHTK, k_BHTK, v_BHTK, bias_HTT)
        parts = zip(q_BHTK.split(rows), k_BHTK.split(rows), v_BHTK.split(rows), strict=True)
        return torch.cat(
            [
                checkpoint(self.largest, q, k, v, bias_HTT, use_reentrant=False, preserve_rng_state=False)
                for q, k, v in parts
            ]
        )

    def largest(
        self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor, bias_HTT: torch.Tensor | None
    ) -> torch.Tensor:
        s_BHTT = self.scores(q_BHTK, k_BHTK, bias_HTT)
        value_BHTK = self.value(torch.relu(v_BHTK.float()).log1p())
        return (s_BHTT[..., None] + value_BHTK[:, :, None]).amax(-2).expm1().to(v_BHTK.dtype)

    def scores(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, bias_HTT: torch.Tensor | None) -> torch.Tensor:
        """s, -inf above the diagonal."""
        q_BHTK, k_BHTK = torch.relu(q_BHTK.float()).log1p(), torch.relu(k_BHTK.float()).log1p()
        return causal(closeness(self.query(q_BHTK), self.key(k_BHTK)), bias_HTT)

    def weights(
        self,
        q_BHTK: torch.Tensor,
        k_BHTK: torch.Tensor,
        bias_HTT: torch.Tensor | None = None,
        x_BTD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.scores(q_BHTK, k_BHTK, bias_HTT).exp()


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TropicalConfig(ScaleFreeConfig):
    """exp(max_j<=i (s_ij + v_jc)) - 1 of max-plus maps of log(1 + relu), s minus the Hilbert distance of q_i and k_j.

    Hashemi et al. 2025 (Tropical Attention, arXiv 2505.17190). 3 K^2 parameters a layer, K the head dimension.
    """

    name: Literal["tropical"] = "tropical"
    projections: bool = True
    """Max-plus maps of queries, keys and values."""

    def build(self, layer: LayerShape) -> MixingRule:
        return Tropical(layer, self.projections)
