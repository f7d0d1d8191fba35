"""Selective attention: positive logits of the first head lower the later logits of all heads for the same key.

    softmax_j<=i(z_ij - F_ij),   F_ij = sum_m<i S_mj,   S_mj = relu(z_mj) of the first head for 1 < j < m, else 0

z = scale q k^T + bias. Through the first head's logits, a token can thus tell all later tokens to ignore another one,
but not itself and never the first token. Leviathan et al. 2024 (arXiv 2410.02703), section 3, without context pruning
and its loss. The exception for the first token is from lucidrains/x-transformers. S covers only visible keys, and
gradients flow through F. Including position biases in the logits that S reads is our reading; the paper has none.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule
from models.reductions import cumsum


class Selective(MixingRule):
    def __init__(self, scale: float, keep_first: bool) -> None:
        super().__init__(scale)
        self.keep_first = keep_first

    def masked(self, z_BHTT: torch.Tensor) -> torch.Tensor:
        """Returns F, [B, 1, T, T]."""
        # relu(-inf) = 0, so a row casts no votes on keys that it does not see.
        votes_B1TT = torch.relu(z_BHTT[:, :1]).tril(-1)
        if self.keep_first:
            votes_B1TT = F.pad(votes_B1TT[..., 1:], (1, 0))
        # Shift down by one row, so that a row sums only the rows before it.
        return F.pad(cumsum(votes_B1TT[:, :, :-1], -2), (0, 0, 1, 0))

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        return torch.softmax(z_BHTT - self.masked(z_BHTT), -1)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SelectiveConfig(MixingConfig):
    """softmax_j<=i(z_ij - F_ij), F_ij the sum of the first head's positive logits for j in the rows before i.

    Leviathan et al. 2024 (Selective Attention, arXiv 2410.02703), section 3. No parameters.
    """

    name: Literal["selective"] = "selective"
    dot_product = True
    keep_first: bool = True
    """Never mask the first token."""

    def build(self, layer: LayerShape) -> MixingRule:
        return Selective(layer.scale, self.keep_first)
