"""Relative convolutional multi-head attention, RCMHA: convolved queries, keys and values, and learned relative terms.

    softmax_j<=i(scale ((q*_i + u) k*_j + q*_i e_(i-j) + b_(i-j)) + bias) of the values v*

q*, k* and v* are causal depthwise convolutions over three tokens with a bias, whose filters the heads share. u [H, K],
e [T, H, K] and b [T, H] start at zero, T the context; distances beyond it, in evaluation, take the last. Sugiharto et
al. 2023 (RCMHA, arXiv 2308.03429; hermansh-id/rcmha, rcmha/attention.py). There values and output projections have
biases; here, as everywhere in the model, they have none. Their feed-forward layer is mlp=relu2, and they use no other
positions: position=none. Probes of logits are of scale q k + bias before the convolutions.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.convolution import CausalConvolution
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.probes import causal, full_precision

TAPS = 3


class RelativeConvolutional(MixingRule):
    def __init__(self, layer: LayerShape) -> None:
        super().__init__(layer.scale)
        self.query, self.key, self.value = (CausalConvolution(TAPS, layer.head_dim, bias=True) for _ in range(3))
        self.u_HK = nn.Parameter(torch.zeros(layer.heads, layer.head_dim))
        self.e_THK = nn.Parameter(torch.zeros(layer.context, layer.heads, layer.head_dim))
        self.b_TH = nn.Parameter(torch.zeros(layer.context, layer.heads))

    def values(self, v_BHTK: torch.Tensor, x_BTD: torch.Tensor | None) -> torch.Tensor:
        return self.value(v_BHTK.float()).to(v_BHTK.dtype)

    def weights(self, inputs: Inputs) -> torch.Tensor:
        length, device = inputs.q_BHTK.shape[-2], inputs.q_BHTK.device
        with full_precision(inputs.q_BHTK):
            q_BHTK, k_BHTK = self.query(inputs.q_BHTK.float()), self.key(inputs.k_BHTK.float())
            position_T = torch.arange(length, device=device)
            known_T = position_T.clamp_max(len(self.b_TH) - 1)
            # By distance, then moved to the column of the key at that distance.
            by_distance_BHTT = q_BHTK @ self.e_THK[known_T].permute(1, 2, 0) + self.b_TH[known_T].mT[:, None]
            back_TT = (position_T[:, None] - position_T).clamp_min(0)
            relative_BHTT = by_distance_BHTT.gather(-1, back_TT.expand_as(by_distance_BHTT))
            z_BHTT = (q_BHTK + self.u_HK[:, None]) @ k_BHTK.mT + relative_BHTT
        return torch.softmax(causal(self.scale * z_BHTT, inputs.bias_HTT), -1)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RCMHAConfig(MixingConfig):
    """softmax_j<=i(scale ((q_i + u) k_j + q_i e_(i-j) + b_(i-j)) + bias) of queries, keys and values convolved in time.

    Sugiharto et al. 2023 (RCMHA, arXiv 2308.03429). H K + T H (K + 1) + 12 K parameters per layer, T the context. The
    authors use position=none mlp=relu2.
    """

    name: Literal["rcmha"] = "rcmha"

    def build(self, layer: LayerShape) -> MixingRule:
        return RelativeConvolutional(layer)
