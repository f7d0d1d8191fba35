"""Weight conditioning: W = P(V) V, V the trained weight, P a diagonal preconditioner. Saratchandran et al. 2024.

Row equilibration, P = diag(1 / |V_i|) over the rows i of V, is within a factor sqrt(rows) of the diagonal P that
minimizes W's condition number (Van der Sluis 1969).
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.reparametrization.base import REPARAMETRIZATION, Reparametrization, ReparametrizationConfig, linears


class RowEquilibration(nn.Module):
    """Divides each row by its L2 norm. Gradients flow through the norm, so they are orthogonal to the rows of V."""

    def forward(self, weight_OI: torch.Tensor) -> torch.Tensor:
        return F.normalize(weight_OI, dim=1, eps=1e-12)


@REPARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class WeightConditioningConfig(ReparametrizationConfig):
    """Rows of every matrix in the blocks are divided by their L2 norms in the forward pass. Saratchandran et al. 2024.

    Our reading: acts on all matrices of attention, MLPs and gates, but not on embedding and head, whose rows represent
    tokens. There is no gain, so rows have norm one, their average norm under init=paper. A layer's output has about
    the RMS of its input, and only the gains of norms can raise it.
    """

    name: Literal["weight_conditioning"] = "weight_conditioning"
    divides = True

    def build(self, model: Any) -> Reparametrization:
        for name, linear in linears(model):
            if name.startswith("blocks."):
                linear.map = RowEquilibration()
        return Reparametrization()
