"""Tropical attention: max-plus algebra in place of products and sums, with distances between queries and keys.

    u = log(1 + relu(u')) for each of queries, keys and values u',    (W (+) u)_c = max_c' (W_cc' + u_c')
    s_ij = min_c(q_ic - k_jc) - max_c(q_ic - k_jc) + bias,   o_ic = exp(max_j<=i (s_ij + v_jc)) - 1

with q = W_q (+) u_q and so on, three [K, K] matrices shared by all heads; s without its bias is the negative Hilbert
projective distance. The scale of q k^T is not used. Hashemi et al. 2025 (arXiv 2505.17190;
Baran-phys/Tropical-Attention). There, queries, keys and values are all log(1 + relu) of the layer's input, split into
heads. Here they are the layer's projections, after qk_norm and positions. That, the causal mask and the position bias
are our reading. The authors use no positions. W starts as N(0, 1).

Since exp(max_j (s_ij + v_jc)) = max_j exp(s_ij) exp(v_jc), `weights` returns exp(s_ij), the factors of the values
before the maximum. Probes of weights use their shares; probes of logits are of scale q k + bias, as for other rules.
The cost is head_dim times that of a T x T matrix.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule, at_once
from models.probes import causal


def closeness(q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> torch.Tensor:
    """Returns s without the bias, [B, H, T, T], at most 0.

    The extreme channels are found without a gradient, so the backward pass needs no T x T x K tensor.
    """

    def difference(channel_BHTT: torch.Tensor) -> torch.Tensor:
        return q_BHTK.gather(-1, channel_BHTT) - k_BHTK.gather(-1, channel_BHTT.mT).mT

    with torch.no_grad():
        rows, least, largest = sequences_at_once(q_BHTK), [], []
        for q, k in zip(q_BHTK.split(rows), k_BHTK.split(rows), strict=True):
            difference_BHTTK = q[..., :, None, :] - k[..., None, :, :]
            least.append(difference_BHTTK.argmin(-1))
            largest.append(difference_BHTTK.argmax(-1))
    return difference(torch.cat(least)) - difference(torch.cat(largest))


def max_plus(s_BHTT: torch.Tensor, v_BHTK: torch.Tensor) -> torch.Tensor:
    """Returns max_j (s_ij + v_jc), [B, H, T, K]; saves memory in the backward pass as `closeness` does."""
    with torch.no_grad():
        rows = sequences_at_once(v_BHTK)
        parts = zip(s_BHTT.split(rows), v_BHTK.split(rows), strict=True)
        # Channels before keys, so that the maximum runs along contiguous memory.
        key_BHTK = torch.cat([(s[..., None, :] + v.mT[..., None, :, :]).argmax(-1) for s, v in parts])
    return s_BHTT.gather(-1, key_BHTK) + v_BHTK.gather(-2, key_BHTK)


def sequences_at_once(q_BHTK: torch.Tensor) -> int:
    """Returns how many sequences fit in memory at once with T x T numbers for every channel."""
    return max(1, at_once(q_BHTK) // q_BHTK.shape[-1])


class MaxPlus(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight_KK = nn.Parameter(torch.zeros(size, size))

    def forward(self, u_BHTK: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            channel_BHTK = (u_BHTK[..., None, :] + self.weight_KK).argmax(-1)
        of_weight_NK = self.weight_KK.mT.gather(0, channel_BHTK.flatten(0, -2))
        return u_BHTK.gather(-1, channel_BHTK) + of_weight_NK.view(channel_BHTK.shape)


class Tropical(MixingRule):
    def __init__(self, layer: LayerShape, projections: bool) -> None:
        super().__init__(layer.scale)
        self.query, self.key, self.value = (MaxPlus(layer.head_dim) if projections else nn.Identity() for _ in range(3))

    def draw(self, generator: torch.Generator) -> None:
        for parameter in self.parameters():
            parameter.normal_(generator=generator)

    def _mixed(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        value_BHTK = self.value(torch.relu(v_BHTK.float()).log1p())
        return max_plus(self.scores(inputs), value_BHTK).expm1().to(v_BHTK.dtype)

    def scores(self, inputs: Inputs) -> torch.Tensor:
        """Returns s, -inf above the diagonal."""
        q_BHTK, k_BHTK = torch.relu(inputs.q_BHTK.float()).log1p(), torch.relu(inputs.k_BHTK.float()).log1p()
        return causal(closeness(self.query(q_BHTK), self.key(k_BHTK)), inputs.bias_HTT)

    def weights(self, inputs: Inputs) -> torch.Tensor:
        return self.scores(inputs).exp()


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TropicalConfig(MixingConfig):
    """exp(max_j<=i (s_ij + v_jc)) - 1 of max-plus maps of log(1 + relu), s minus the Hilbert distance of q_i and k_j.

    Hashemi et al. 2025 (Tropical Attention, arXiv 2505.17190). 3 K^2 parameters per layer, K the head dimension.
    """

    name: Literal["tropical"] = "tropical"
    saturates = False
    reads_scale = False
    zero_init_safe = False
    projections: bool = True
    """Apply max-plus maps to queries, keys and values."""

    def build(self, layer: LayerShape) -> MixingRule:
        return Tropical(layer, self.projections)
