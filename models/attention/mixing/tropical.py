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
rules, of scale q k + bias. It takes head_dim times the arithmetic of a T x T matrix.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule, at_once
from models.probes import causal


def closeness(q_BHTK: torch.Tensor, k_BHTK: torch.Tensor) -> torch.Tensor:
    """s without a bias, [B, H, T, T]: at most 0.

    Which channels are the largest and the least is found without a gradient, which then needs no T x T x K tensor.
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
    """max_j (s_ij + v_jc), [B, H, T, K], the gradient as that of `closeness`."""
    with torch.no_grad():
        rows = sequences_at_once(v_BHTK)
        parts = zip(s_BHTT.split(rows), v_BHTK.split(rows), strict=True)
        # Channels in front of keys: the maximum is along what lies side by side in memory.
        key_BHTK = torch.cat([(s[..., None, :] + v.mT[..., None, :, :]).argmax(-1) for s, v in parts])
    return s_BHTT.gather(-1, key_BHTK) + v_BHTK.gather(-2, key_BHTK)


def sequences_at_once(q_BHTK: torch.Tensor) -> int:
    """As many as have T x T numbers for every channel in one block."""
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
        """s, -inf above the diagonal."""
        q_BHTK, k_BHTK = torch.relu(inputs.q_BHTK.float()).log1p(), torch.relu(inputs.k_BHTK.float()).log1p()
        return causal(closeness(self.query(q_BHTK), self.key(k_BHTK)), inputs.bias_HTT)

    def weights(self, inputs: Inputs) -> torch.Tensor:
        return self.scores(inputs).exp()


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TropicalConfig(MixingConfig):
    """exp(max_j<=i (s_ij + v_jc)) - 1 of max-plus maps of log(1 + relu), s minus the Hilbert distance of q_i and k_j.

    Hashemi et al. 2025 (Tropical Attention, arXiv 2505.17190). 3 K^2 parameters a layer, K the head dimension.
    """

    name: Literal["tropical"] = "tropical"
    reads_scale = False
    zero_init_safe = False
    projections: bool = True
    """Max-plus maps of queries, keys and values."""

    def build(self, layer: LayerShape) -> MixingRule:
        return Tropical(layer, self.projections)
