"""Inverse distance weighting: softmax of the negative logarithm of distances between queries and keys.

    A_ij = softmax_j<=i(bias - log(eps + |q_i - k_j|^power))

Without a bias this is (1 / d_ij) / sum_m (1 / d_im), where d is eps plus the distance. McCarter 2023 (arXiv 2310.18805;
calvinmccarter/idw-attention) uses it in classifiers with one hidden layer. For a Transformer, our reading is that each
head has its own distances and that positions add to the logarithm. A common factor of queries and keys cancels, up to
eps, so the scale of q k^T is not used. Squared distances are |q|^2 + |k|^2 - 2 q k in fp32, clamped at 0; rounding
loses what is below 1e-7 of the squared norms.

Probes of logits are of scale q k + bias, for comparison with other rules.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.probes import causal, scaled_products

# Squared distances are clamped here and get no gradient below, just as |x|^power has none at 0 for powers above 1.
LEAST = 1e-12


class InverseDistance(MixingRule):
    def __init__(self, scale: float, eps: float, power: float) -> None:
        super().__init__(scale)
        self.log_eps, self.half_power = math.log(eps), power / 2

    def weights(self, inputs: Inputs) -> torch.Tensor:
        q_BHTK, k_BHTK, bias_HTT, _ = inputs
        q_sq_BHT, k_sq_BHT = (x_BHTK.float().square().sum(-1) for x_BHTK in (q_BHTK, k_BHTK))
        sq_BHTT = q_sq_BHT[..., :, None] + k_sq_BHT[..., None, :] - scaled_products(q_BHTK, k_BHTK, 2.0)
        log_d_BHTT = self.half_power * sq_BHTT.clamp_min(LEAST).log()
        log_d_BHTT = torch.logaddexp(log_d_BHTT, log_d_BHTT.new_tensor(self.log_eps))
        return torch.softmax(causal(-log_d_BHTT, bias_HTT), -1)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class InverseDistanceConfig(MixingConfig):
    """Weights proportional to exp(bias) / (eps + |q_i - k_j|^power), j <= i.

    McCarter 2023 (Inverse distance weighting attention, arXiv 2310.18805).
    """

    name: Literal["idw"] = "idw"
    saturates = False
    reads_scale = False
    eps: Annotated[float, Field(gt=0)] = 1e-3
    """Added to the distance. Default: calvinmccarter/idw-attention."""
    power: Annotated[float, Field(gt=0)] = 2.0
    """Exponent of the Euclidean distance. Default: calvinmccarter/idw-attention."""

    def build(self, layer: LayerShape) -> MixingRule:
        return InverseDistance(layer.scale, self.eps, self.power)
