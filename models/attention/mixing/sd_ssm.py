"""Selective dense state space, SD-SSM, in place of attention: each token chooses a mixture of dense transitions.

    s_t = softmax(W x_t + b),  A_t = normalize(sum_k s_tk A_k),  h_t = A_t h_t-1 + B x_t,  out = W_out LayerNorm(h_t)

`normalize` divides each column by its L_p norm, with p a little above 1, which keeps |h|_1 about constant. A_k are
`matrices` dense [N, N] matrices, initially uniform in +-sqrt(3 / N). Terzic et al. 2025 (SD-SSM, arXiv 2412.19350;
IBM/selective-dense-state-space-model, models/SDSSM.py). There it is the whole model, read out once; one layer of it per
block is our use. Columns have at least 1e-6 as a norm, our bound. No readout bias, as everywhere in this model.

States follow each other token by token, since the product of dense A_t has no shortcut. There is no T x T matrix of
numbers: an earlier token acts on a later one through an N x N matrix. It records no attention probes.

Shape suffixes: B batch, T tokens, D model width, M matrices, N state.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape
from models.attention.mixing.replacement import ReplacementConfig
from models.carry import Carry
from models.layers import Drawn, Linear
from models.mixer import TokenMixer
from models.norms import LayerNorm
from models.probes import full_precision

LEAST = 1e-6


class Transitions(Drawn):
    """The dense matrices A_k."""

    def __init__(self, matrices: int, state: int) -> None:
        super().__init__()
        self.weight_MNN = nn.Parameter(torch.eye(state).repeat(matrices, 1, 1))

    def draw(self, generator: torch.Generator) -> None:
        bound = (3 / self.weight_MNN.shape[-1]) ** 0.5
        self.weight_MNN.uniform_(-bound, bound, generator=generator)


class DenseStateSpace(TokenMixer):
    def __init__(self, width: int, state: int, matrices: int, p: float) -> None:
        super().__init__()
        self.p = p
        self.choose, self.bias_M = Linear(width, matrices), nn.Parameter(torch.zeros(matrices))
        self.choose.rows_follow_width = False
        self.value, self.out = Linear(width, state, "value"), Linear(state, width, "out")
        self.transitions = Transitions(matrices, state)
        self.norm = LayerNorm(state, 1e-5)

    def draw(self, generator: torch.Generator) -> None:
        self.transitions.draw(generator)

    def transition(self, logits_BTM: torch.Tensor) -> torch.Tensor:
        """Returns A_t, [B, T, N, N]."""
        a_BTNN = torch.einsum("btm,mij->btij", torch.softmax(logits_BTM, -1), self.transitions.weight_MNN)
        # Not torch's norm, whose gradient at a zero column is NaN for p < 2.
        power_BT1N = (a_BTNN.square() + LEAST**2).pow(self.p / 2).sum(-2, keepdim=True)
        return a_BTNN / power_BT1N.pow(1 / self.p)

    def states(self, a_BTNN: torch.Tensor, u_BTN: torch.Tensor) -> torch.Tensor:
        """Returns h, [B, T, N]."""
        h_BN, found = torch.zeros_like(u_BTN[:, 0]), []
        for a_BNN, u_BN in zip(a_BTNN.unbind(1), u_BTN.unbind(1), strict=True):
            h_BN = (a_BNN @ h_BN[..., None])[..., 0] + u_BN
            found.append(h_BN)
        return torch.stack(found, 1)

    def forward(self, x_BTD: torch.Tensor, carry: Carry) -> torch.Tensor:
        with full_precision(x_BTD):
            a_BTNN = self.transition(self.choose(x_BTD.float()) + self.bias_M)
            h_BTN = self.states(a_BTNN, self.value(x_BTD.float()))
        return self.out(self.norm(h_BTN))


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SDSSMConfig(ReplacementConfig):
    """h_t = A_t h_t-1 + B x_t, A_t a mixture of dense matrices chosen by the token, its columns of L_p norm one.

    Terzic et al. 2025 (SD-SSM, arXiv 2412.19350), in place of attention; the layer around it is our reading.
    """

    name: Literal["sd_ssm"] = "sd_ssm"
    fan_in_follows_width = False
    state: Annotated[int, Field(ge=1)] = 64
    """Size N of the state."""
    matrices: Annotated[int, Field(ge=1)] = 6
    """Number of dense matrices. The authors: 6 to 18."""
    p: Annotated[float, Field(ge=1, le=2)] = 1.2
    """Norm of the columns. The authors: 1.1 to 1.4."""

    def mixer(self, layer: LayerShape) -> TokenMixer:
        return DenseStateSpace(layer.width, self.state, self.matrices, self.p)
