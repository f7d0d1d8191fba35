"""Hedgehog: linear attention whose feature maps are softmaxes of learned maps of queries and keys.

    phi(x) = [softmax(W x), softmax(-W x)];    o_i = sum_j<=i phi_q(q_i) phi_k(k_j) v_j / sum_j<=i phi_q(q_i) phi_k(k_j)

W is [K, K], one per head and separate for queries and keys; it starts as the identity. Zhang et al. 2024 (Hedgehog,
arXiv 2402.04347), section 4.2, and its stable form with a softmax over features in the first author's
HazyResearch/lolcats, src/model/feature_map.py. map=exp is the form of the paper's equation, [exp(W x), exp(-W x)]; it
is computed with each token's largest |W x| removed from queries, which cancels, and with |W x| <= 40 for keys, which is
our bound. flash-linear-attention has a third form, one softmax over [2 W x, -2 W x].

Trained from scratch, as here; the paper also distils from softmax, with a loss that this leaves out. Softmax
features are at least 1e-12, as there, so no row is lost.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.linear_time import Map
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.linear import LinearAttention

LARGEST, LEAST = 40.0, 1e-12


class Hedgehog(LinearAttention):
    least = 1e-24

    def __init__(self, layer: LayerShape, softmax: bool) -> None:
        super().__init__(layer.scale)
        self.softmax = softmax
        identity = torch.eye(layer.head_dim).repeat(layer.heads, 1, 1)
        self.query_HKK, self.key_HKK = nn.Parameter(identity), nn.Parameter(identity.clone())

    def features(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        q_BHTK = inputs.q_BHTK.float() @ self.query_HKK.mT
        k_BHTK = inputs.k_BHTK.float() @ self.key_HKK.mT
        if self.softmax:
            return both(q_BHTK, softmax_features), both(k_BHTK, softmax_features)
        largest_BHT1 = q_BHTK.abs().amax(-1, keepdim=True)
        return both(q_BHTK, lambda u: (u - largest_BHT1).exp()), both(k_BHTK.clamp(-LARGEST, LARGEST), torch.exp)


def softmax_features(u: torch.Tensor) -> torch.Tensor:
    return torch.softmax(u, -1).clamp_min(LEAST)


def both(u: torch.Tensor, phi: Map) -> torch.Tensor:
    return torch.cat([phi(u), phi(-u)], -1)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class HedgehogConfig(MixingConfig):
    """Weights proportional to phi_q(q_i) phi_k(k_j), phi(x) = [softmax(W x), softmax(-W x)] with learned W.

    Zhang et al. 2024 (Hedgehog, arXiv 2402.04347). 2 H K^2 parameters per layer, K the head dimension.
    Parametrizations take W for a vector, as K does not grow with the width where heads do.
    """

    name: Literal["hedgehog"] = "hedgehog"
    reads_scale = False
    map: Literal["softmax", "exp"] = "softmax"
    """The functions of W x and -W x: a softmax over features, or exp."""

    def build(self, layer: LayerShape) -> MixingRule:
        return Hedgehog(layer, self.map == "softmax")
