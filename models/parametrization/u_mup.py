"""u-muP: muP with weights of std 1. Blake et al. 2024 (arXiv 2407.17465); code in graphcore-research/unit-scaling.

As an abc-parametrization, with L the number of blocks and eta of order one:

| tensor | init std | forward | LR |
|---|---|---|---|
| embedding | 1 | 1 | eta width^(-1/2) |
| hidden matrix | 1 | fan_in^(-1/2) | eta fan_in^(-1/2) L^(-1/2) |
| vector in a block | unchanged | | eta L^(-1/2) |
| vector outside | unchanged | | eta |
| head | 1 | alpha_loss / fan_in | eta |
| attention | | alpha_attention / head_dim | |
| branches | | a L^(-1/2), a^2 = 2 alpha_res^2 / (1 + r^2), times r for attention | |

LRs and forward factors are those of `unit_scaling/optim.py` and `functional.py`. There a sublayer returns
(x + tau_l f(x)) / sqrt(1 + tau_l^2), with tau_l from `transformer_residual_scaling_rule`. Pre-norm ignores the common
divisors. Removing them from the stream turns each tau_l into exactly the constant of the last row.

Left out: the constants that bring the outputs of activations, attention and residual additions to unit scale (those of
attention and MLP change the weight of their branch), the scales of the backward pass, alpha_ffn-act, and norms without
gains. Adam notices the scale of the gradient only through its epsilon; gradients are smaller here than there.

Learning rates are not comparable with other parametrizations: a hidden matrix at eta / fan_in^(1/2) with its multiplier
learns like one of std fan_in^(-1/2) at eta / fan_in. Decay has no factor, because it is relative to the weights'
scale; u-muP's is independent.
"""

import math
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.init import InitConfig
from models.parametrization.base import PARAMETRIZATION, ParametrizationConfig, Sublayer, Tensor, TensorScaling
from models.size import SizeConfig


@PARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class UnitMuP(ParametrizationConfig):
    """u-muP, the unit-scaled maximal update parametrization: weights of std 1, no base. Blake et al. 2024.

    The init axis sets only the shape of the distribution; its std is rescaled to 1. LRs are of order one, not 1e-2.
    """

    name: Literal["u_mup"] = "u_mup"
    alpha_res: Annotated[float, Field(gt=0)] = 1.0
    """Total weight of all branches relative to the embedding."""
    alpha_res_attn_ratio: Annotated[float, Field(gt=0)] = 1.0
    """r, the weight of attention branches relative to MLP branches."""
    alpha_attention: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies attention logits."""
    alpha_loss: Annotated[float, Field(gt=0)] = 1.0
    """Multiplies the output logits."""
    scales_with_depth = True
    sets_std = True

    def reference_std(self, tensor: Tensor, size: SizeConfig, init: InitConfig) -> float | None:
        return 1.0

    def scaling(self, tensor: Tensor, size: SizeConfig) -> TensorScaling:
        depth = max(1, size.depth) ** -0.5 if tensor.in_block else 1.0
        match tensor.kind:
            case "embedding":
                return TensorScaling(lr=tensor.parameter.shape[1] ** -0.5)
            case "hidden":
                fan_in = tensor.parameter.shape[1]
                return TensorScaling(multiplier=fan_in**-0.5, lr=fan_in**-0.5 * depth)
            case "head":
                return TensorScaling(multiplier=self.alpha_loss / tensor.parameter.shape[1])
            case "vector":
                return TensorScaling(lr=depth)

    def attention_scale(self, head_dim: int) -> float:
        return self.alpha_attention / head_dim

    def branch_scale(self, size: SizeConfig, sublayer: Sublayer) -> float:
        ratio = self.alpha_res_attn_ratio
        mlp = self.alpha_res * math.sqrt(2 / (1 + ratio**2) / max(1, size.depth))
        return ratio * mlp if sublayer == "attention" else mlp
