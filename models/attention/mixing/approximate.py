"""Softmax with the exponential replaced by its second-order Taylor polynomial.

    A_ij = f(z_ij) exp(bias) / sum_m<=i f(z_im) exp(bias),   f(z) = 1 + z + z^2 / 2,   z = scale q k^T

f is at least 1/2, so no row is empty. But it grows on both sides, so very negative logits get weight too. Xue et al.
2025 (arXiv 2510.11602), their "Approximate" variant; the polynomial is from Based (Arora et al. 2024, arXiv
2402.18668). Position biases keep the exponential, because f would amplify what ALiBi damps. This is our reading; the
paper uses RoPE.

Computed as softmax(log f(z) + bias), which is stable for any z. Probes of logits are of z + bias.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.probes import causal, scaled_products


class Approximate(MixingRule):
    keeps_ratios = True

    def weights(self, inputs: Inputs) -> torch.Tensor:
        q_BHTK, k_BHTK, bias_HTT, _ = inputs
        z_BHTT = scaled_products(q_BHTK, k_BHTK, self.scale)
        return torch.softmax(causal((z_BHTT * (1 + z_BHTT / 2)).log1p(), bias_HTT), -1)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ApproximateConfig(MixingConfig):
    """Weights proportional to (1 + z + z^2 / 2) exp(bias), z = scale q_i k_j, j <= i.

    Xue et al. 2025 (Deconstructing Attention, arXiv 2510.11602), Approximate.
    """

    name: Literal["approximate"] = "approximate"
    saturates = False
    dot_product = True

    def build(self, layer: LayerShape) -> MixingRule:
        return Approximate(layer.scale)
