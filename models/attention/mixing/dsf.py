"""Linear attention divided by a learned number per head and token in place of its row sum.

    o_i = exp(-(w x_i + b)) sum_j<=i (q_i k_j) v_j

No feature map and no scale. The "normalized attention" of Sieber et al. 2024 (Dynamical Systems Framework, arXiv
2405.15731; IntelligentControlSystems/dsf-mqar), whose point is that the normalizer need not be the sum. Our readings:
w is filled by the init axis, b starts at zero, and |w x + b| <= 20. The authors use no RoPE. Weights are signed, and
their rows have no fixed sum.
"""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.head_gate import HeadGate
from models.attention.mixing.linear import LinearAttention

LARGEST = 20.0


class LearnedNormalizer(LinearAttention):
    normalized = False

    def __init__(self, layer: LayerShape) -> None:
        super().__init__(layer.scale)
        self.normalizer = HeadGate(layer.width, layer.heads, bias=True)

    def factor(self, inputs: Inputs) -> torch.Tensor:
        return (-self.normalizer(inputs.x_BTD).clamp(-LARGEST, LARGEST)).exp()[..., None]

    def summed(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        return self.factor(inputs) * super().summed(inputs, v_BHTK)

    def raw_weights(self, inputs: Inputs) -> torch.Tensor:
        return self.factor(inputs) * super().raw_weights(inputs)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DSFConfig(MixingConfig):
    """exp(-(w x_i + b)) sum_j<=i (q_i k_j) v_j: linear attention with a learned normalizer per head and token.

    Sieber et al. 2024 (DSF, arXiv 2405.15731). D H + H parameters per layer.
    """

    name: Literal["dsf"] = "dsf"
    saturates = False
    reads_scale = False

    def build(self, layer: LayerShape) -> MixingRule:
        return LearnedNormalizer(layer)
