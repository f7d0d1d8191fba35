"""LSSA with re-weighting, LSSAR: weights are a power of LSSA's excess over the row mean.

    B_ij = relu(i A_ij - O_i)^p / sum_m relu(i A_im - O_i)^p,    A of LSSA, O_i = 1 but 0 in the first three rows

i A_ij has mean 1 over the i visible keys. So from the fourth row on, all keys with A_ij <= 1/i have weight zero.
Gao et al. 2025 (arXiv 2501.13428), equations as restated by readers of the paper. (i A)^15 overflows fp32, so the row
maximum is divided out before the power. From the fourth row on, a row of equal weights has no key above the mean, which
leaves B undefined. Our reading is to keep A there, with a tolerance of 1e-5 for rounding.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingRule
from models.attention.mixing.lssa import LengthScaledSoftplus, LSSAConfig, visible

# A row whose largest i A_ij - 1 is below this counts as uniform.
FLAT = 1e-5
FULL_ROWS = 3


class Reweighted(LengthScaledSoftplus):
    def __init__(self, scale: float, head_dim: int, power: float) -> None:
        super().__init__(scale, head_dim)
        self.power = power

    def weights(self, inputs: Inputs) -> torch.Tensor:
        a_BHTT = super().weights(inputs)
        i_T1 = visible(a_BHTT.shape[-1], a_BHTT.device)[:, None]
        above_BHTT = torch.relu(i_T1 * a_BHTT - (i_T1 > FULL_ROWS).float())
        # Dividing by the sum below cancels the maximum, so it needs no gradient.
        top_BHT1 = above_BHTT.detach().amax(-1, keepdim=True)
        sharp_BHTT = (above_BHTT / top_BHT1.clamp_min(FLAT)).pow(self.power)
        sharp_BHTT = sharp_BHTT / sharp_BHTT.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return torch.where(top_BHT1 > FLAT, sharp_BHTT, a_BHTT)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LSSARConfig(LSSAConfig):
    """LSSA's weights A sharpened to relu(i A_ij - 1)^power, divided by the row sum; without the -1 in rows 1 to 3.

    Gao et al. 2025 (LSSAR, arXiv 2501.13428). Exact zeros below the mean.
    """

    name: Literal["lssar"] = "lssar"  # type: ignore[assignment]
    power: Annotated[float, Field(ge=1)] = 15.0
    """Exponent. 15 is the paper's choice for long contexts; at the training length they find 3 best."""

    def build(self, layer: LayerShape) -> MixingRule:
        return Reweighted(layer.scale, layer.head_dim, self.power)
