"""Length-scaled softplus attention, LSSA: softplus in place of the exponential, divided by the row sum.

    S_ij = log(head_dim) log(i) cos(q_i, k_j) + bias,    A_ij = softplus(S_ij) / sum_m<=i softplus(S_im)

i counts rows from 1, so it is the number of visible keys. Both logarithms are natural. The first row gives its only key
weight 1. Gao et al. 2025 (arXiv 2501.13428). We had no access to their code (iminfine/freeatten); the equations are as
restated by readers of the paper. Our reading: the cosine is taken after the positions, and position biases add to S.
Norms in cos are sqrt(|q|^2 + 1e-8), so queries that start at zero get a gradient.

S sets its own scale, so the parametrization's is not used, and logits cannot exceed log(head_dim) log(i).
Probes of logits are of scale q k + bias, for comparison with other rules.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.probes import causal, scaled_products

EPS = 1e-8


def visible(length: int, device: torch.device) -> torch.Tensor:
    """Returns i, the number of keys visible to each row, [T] in fp32."""
    return torch.arange(1, length + 1, device=device, dtype=torch.float32)


def unit(x_BHTK: torch.Tensor) -> torch.Tensor:
    x_BHTK = x_BHTK.float()
    return x_BHTK * torch.rsqrt(x_BHTK.square().sum(-1, keepdim=True) + EPS)


class LengthScaledSoftplus(MixingRule):
    def __init__(self, scale: float, head_dim: int) -> None:
        super().__init__(scale)
        self.log_dim = math.log(head_dim)

    def weights(self, inputs: Inputs) -> torch.Tensor:
        q_BHTK, k_BHTK, bias_HTT, _ = inputs
        log_T = visible(q_BHTK.shape[-2], q_BHTK.device).log()
        s_BHTT = scaled_products(unit(q_BHTK), unit(k_BHTK), self.log_dim) * log_T[:, None]
        # softplus(-inf) = 0, so masked keys have no weight.
        plus_BHTT = F.softplus(causal(s_BHTT, bias_HTT))
        return plus_BHTT / plus_BHTT.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LSSAConfig(MixingConfig):
    """softplus(S_ij) / sum_m<=i softplus(S_im), S_ij = log(head_dim) log(i) cos(q_i, k_j) + bias, i counted from 1.

    Gao et al. 2025 (LSSA, arXiv 2501.13428).
    """

    steep_at_zero = True
    name: Literal["lssa"] = "lssa"
    saturates = False
    reads_scale = False
    reads_lengths = False

    def build(self, layer: LayerShape) -> MixingRule:
        return LengthScaledSoftplus(layer.scale, layer.head_dim)
