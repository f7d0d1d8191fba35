"""LSSA with re-weighting, LSSAR: a power of how far each weight is above the mean of its row.

    B_ij = relu(i A_ij - O_i)^p / sum_m relu(i A_im - O_i)^p,    A of LSSA, O_i = 1 but 0 in the first three rows

i A_ij has mean 1 over the i visible keys, so that from the fourth row on all keys with A_ij <= 1/i have weight zero.
Gao et al. 2025 (arXiv 2501.13428), equations as restated by readers of the paper. (i A)^15 overflows fp32: the row's
maximum is divided out before the power. A row from the fourth on whose weights are all equal has no key above its mean
and no B: our reading keeps A there, within 1e-5, which is above rounding.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingRule
from models.attention.mixing.lssa import LengthScaledSoftplus, LSSAConfig, visible

# A row whose largest i A_ij - 1 is below it counts as flat.
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
        # The sum takes the maximum out again, so that it needs no gradient.
        top_BHT1 = above_BHTT.detach().amax(-1, keepdim=True)
        sharp_BHTT = (above_BHTT / top_BHT1.clamp_min(FLAT)).pow(self.power)
        sharp_BHTT = sharp_BHTT / sharp_BHTT.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return torch.where(top_BHT1 > FLAT, sharp_BHTT, a_BHTT)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LSSARConfig(LSSAConfig):
    """LSSA's weights A sharpened to relu(i A_ij - 1)^power, divided by the sum of the row; the first three without -1.

    Gao et al. 2025 (LSSAR, arXiv 2501.13428). Exact zeros below the mean.
    """

    name: Literal["lssar"] = "lssar"  # type: ignore[assignment]
    power: Annotated[float, Field(ge=1)] = 15.0
    """The paper's for long contexts; at the length of training 3 is best there."""

    def build(self, layer: LayerShape) -> MixingRule:
        return Reweighted(layer.scale, layer.head_dim, self.power)
