"""Normalized attention pooling: logits are standardized over the visible keys of each row instead of a softmax.

    A_ij = g (l_ij - mean_i) / (std_i + 1e-3) + b,   l = q k^T + bias,   j <= i
    o = GELU(LayerNorm(A V)), over the concatenated heads

mean and (biased) std are over a row's visible keys. g and b are one number per head and start at 1 and 0. Logits have
no scale, because standardization removes it. Weights have both signs and their squares sum to i, so outputs grow like
sqrt(i). The LayerNorm (eps 1e-3, scale and bias, as in Keras) and the GELU belong to the rule; the authors' code can
omit the GELU. Richter & Wattenhofer 2020 (arXiv 2005.09561; OliverRichter/normalized-attention) use an encoder. Taking
the visible keys as the mask is our reading. The first row has no spread, so its weight is b, initially zero. Their
second LayerNorm, of the sublayer's output, belongs to the placement axis: placement=sandwich comes close.

Probes of logits are of scale q k + bias, for comparison with other rules.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.probes import scaled_products

EPS = 1e-3


class Standardized(MixingRule):
    def __init__(self, layer: LayerShape, gelu: bool) -> None:
        super().__init__(layer.scale)
        self.gelu = gelu
        self.gain_H = nn.Parameter(torch.ones(layer.heads))
        self.bias_H = nn.Parameter(torch.zeros(layer.heads))
        self.norm_weight_D = nn.Parameter(torch.ones(layer.heads * layer.head_dim))
        self.norm_bias_D = nn.Parameter(torch.zeros(layer.heads * layer.head_dim))

    def weights(self, inputs: Inputs) -> torch.Tensor:
        q_BHTK, k_BHTK, bias_HTT, _ = inputs
        l_BHTT = scaled_products(q_BHTK, k_BHTK, 1.0)
        if bias_HTT is not None:
            l_BHTT = l_BHTT + bias_HTT
        length = l_BHTT.shape[-1]
        count_T1 = torch.arange(1, length + 1, device=l_BHTT.device)[:, None]
        # With identical keys, l - mean is rounding error; the square root has no gradient at 0.
        centered_BHTT = (l_BHTT - l_BHTT.tril().sum(-1, keepdim=True) / count_T1).tril()
        variance_BHT1 = centered_BHTT.square().sum(-1, keepdim=True) / count_T1
        spread_BHT1 = variance_BHT1.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
        gain_H11, bias_H11 = self.gain_H[:, None, None], self.bias_H[:, None, None]
        return (gain_H11 * centered_BHTT / (spread_BHT1 + EPS) + bias_H11).tril()

    def finish(self, mixed_BHTK: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        heads = mixed_BHTK.shape[1]
        side_by_side_BTD = mixed_BHTK.transpose(1, 2).flatten(2).float()
        normed_BTD = F.layer_norm(side_by_side_BTD, self.norm_weight_D.shape, self.norm_weight_D, self.norm_bias_D, EPS)
        if self.gelu:
            normed_BTD = F.gelu(normed_BTD, approximate="tanh")
        return normed_BTD.unflatten(-1, (heads, -1)).transpose(1, 2).to(mixed_BHTK.dtype)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StandardizedConfig(MixingConfig):
    """Weights g (l_ij - mean_i) / std_i + b of l = q k^T + bias over j <= i, then LayerNorm and GELU of all heads.

    Richter & Wattenhofer 2020 (NAP, arXiv 2005.09561). 2 H + 2 D parameters per layer.
    """

    steep_at_zero = True
    name: Literal["nap"] = "nap"
    saturates = False
    reads_scale = False
    gelu: bool = True
    """Apply a GELU after the LayerNorm."""

    def build(self, layer: LayerShape) -> MixingRule:
        return Standardized(layer, self.gelu)
