"""Adaptive temperature: softmax(beta_i z_ij), beta_i a polynomial of the entropy H_i of softmax(z_i), at least 1.

    beta = max(1, -0.037 H^4 + 0.481 H^3 - 2.3 H^2 + 4.917 H - 1.791) where H > 0.5 nats, else 1

Veličković et al. 2024 (arXiv 2410.01104). It sharpens flat rows and never flattens sharp ones. They use it only at
inference, with coefficients fitted to a maximum-finding task: `in_training=false`. When training uses it, as by default
here, no gradient flows through beta, which is our reading. The polynomial is above 1 for 0.849 < H < 5.944, so uniform
rows over many hundred keys stay unchanged.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.softmax import Softmax, has_fused_entropy
from models.probes import full_precision, fused_entropy, weight_entropy

COEFFICIENTS = (-0.037, 0.481, -2.3, 4.917, -1.791)


@torch.no_grad()
def inverse_temperature(entropy: torch.Tensor) -> torch.Tensor:
    """Returns beta for entropies in nats, same shape."""
    beta = torch.zeros_like(entropy)
    for coefficient in COEFFICIENTS:
        beta = beta * entropy + coefficient
    return torch.where(entropy > 0.5, beta.clamp_min(1.0), 1.0)


class AdaptiveTemperature(Softmax):
    """Without a bias, scales the queries by beta and uses fused softmax attention; the entropy is fused too."""

    keeps_ratios = False

    def __init__(self, scale: float, in_training: bool) -> None:
        super().__init__(scale)
        self.in_training = in_training

    @property
    def acts(self) -> bool:
        return self.in_training or not self.training

    def forward(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        if not self.acts:
            return super().forward(inputs, v_BHTK)
        if not has_fused_entropy(inputs):
            return MixingRule.forward(self, inputs, v_BHTK)
        return super().forward(self._sharpened(inputs), v_BHTK)

    def _sharpened(self, inputs: Inputs) -> Inputs:
        """Returns the inputs with beta q in fp32. Not for use with a bias, which beta must multiply too."""
        q_BHTK = inputs.q_BHTK.float()
        with torch.no_grad(), full_precision(q_BHTK):
            entropy_BHT = fused_entropy(q_BHTK, inputs.k_BHTK.float(), self.scale)
        return inputs._replace(q_BHTK=inverse_temperature(entropy_BHT)[..., None] * q_BHTK)

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        p_BHTT = torch.softmax(z_BHTT, -1)
        if not self.acts:
            return p_BHTT
        return torch.softmax(inverse_temperature(weight_entropy(p_BHTT.detach()))[..., None] * z_BHTT, -1)

    def entropy(self, inputs: Inputs) -> torch.Tensor:
        if not has_fused_entropy(inputs):
            return MixingRule.entropy(self, inputs)
        return super().entropy(self._sharpened(inputs) if self.acts else inputs)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AdaptiveTemperatureConfig(MixingConfig):
    """softmax(beta z) of the scaled logits, beta >= 1 a polynomial of the entropy of softmax(z).

    Veličković et al. 2024 (Adaptive temperature, arXiv 2410.01104).
    """

    name: Literal["adaptive_temperature"] = "adaptive_temperature"
    dot_product = True
    in_training: bool = True
    """Apply beta in training too, without a gradient through it. false: only in evaluation, as published."""

    def build(self, layer: LayerShape) -> MixingRule:
        return AdaptiveTemperature(layer.scale, self.in_training)
