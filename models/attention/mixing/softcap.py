"""Softmax attention over capped logits: softmax_j<=i(cap tanh(s_ij / cap) + bias), s = scale q k^T.

As in Gemma's code (google-deepmind/gemma), the cap acts on the scaled products, before the mask. Position biases are
added after it, as in flash-attention, so ALiBi keeps its slopes. torch's only fused kernel for this is flex_attention,
which has no backward pass on CPUs, so weights are explicit.

Probes are the same as for other rules, for comparison. `logit_max` is of s + bias, before the cap, because that shows
whether logits grow. Without a bias, the largest logit that softmax sees is cap tanh(logit_max / cap).
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.probes import causal, scaled_products


class Softcap(MixingRule):
    keeps_ratios = True

    def __init__(self, scale: float, cap: float) -> None:
        super().__init__(scale)
        self.cap = cap

    def weights(self, inputs: Inputs) -> torch.Tensor:
        q_BHTK, k_BHTK, bias_HTT, _ = inputs
        capped_BHTT = self.cap * torch.tanh(scaled_products(q_BHTK, k_BHTK, self.scale / self.cap))
        return torch.softmax(causal(capped_BHTT, bias_HTT), -1)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SoftcapConfig(MixingConfig):
    """softmax_j<=i(cap tanh(scale q_i k_j / cap) + bias): logits of q and k stay within +-cap.

    Riviere et al. 2024 (Gemma 2, arXiv 2408.00118), section 2; Rybakov et al. 2024 (arXiv 2410.16682).
    """

    name: Literal["softcap"] = "softcap"
    dot_product = True
    cap: Annotated[float, Field(gt=0)] = 50.0
    """Bound of the logits. Default: Gemma 2's."""

    def build(self, layer: LayerShape) -> MixingRule:
        return Softcap(layer.scale, self.cap)
