"""Mamba: a selective state space with a decay per channel and state, its convolution and its gate, for attention.

    x, z = W x_in;    x = silu(conv(x));    dt, B, C = W_x x;    dt = softplus(W_dt dt + bias)
    h_t = exp(dt_t A) h_t-1 + dt_t B_t x_t,    y_t = C_t h_t + D x_t,    out = W_out (y * silu(z))

x, z and dt have I = 2 D channels, B and C have N features that all channels share, h is I x N, A = -exp(.) is too. dt
has rank D / 16, rounded up. The convolution is causal and depthwise with a bias. A starts at -1 ... -N in every
channel, D at one, softplus(bias) log-uniform in (0.001, 0.1), W_dt uniform in +-rank^-1/2 with any init,
parametrization and reparametrization; weight decay skips A, D and the bias. Gu & Dao 2023 (Mamba, arXiv 2312.00752),
algorithm 2; state-spaces/mamba, modules/mamba_simple.py. There one matrix makes x and z, and another dt, B and C.

On watch steps the explicit weights of a few channels are probed as attention weights, one in the middle of each of H
equal parts: w_ij = sum_n C_in exp(A_n sum_j<k<=i dt_k) B_jn dt_j + [i = j] D, the hidden attention of Ali, Zimerman &
Wolf 2024 (arXiv 2403.01590) with the direct path. They are signed. There are no logits. `state_stats` of all channels
are recorded as `state`.

Shape suffixes: B batch, T tokens, D model width, I inner channels, N state, R rank of dt, H probed channels.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.convolution import CausalConvolution
from models.attention.linear_time import scan, weights
from models.attention.mixing.base import ATTENTION, LayerShape
from models.attention.mixing.mamba2 import EXPAND, Skip
from models.attention.mixing.recurrence import draw_steps
from models.attention.mixing.replacement import ReplacementConfig, hidden_attention, watched
from models.carry import Carry
from models.layers import Drawn, Linear
from models.mixer import TokenMixer
from models.probes import full_precision, state_stats


class StateRates(Drawn):
    """log -A, [I, N], and the bias of dt, [I]; weight decay skips both."""

    decays = False

    def __init__(self, channels: int, state: int) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(channels, 1))
        self.step_bias = nn.Parameter(torch.full((channels,), math.log(math.expm1(0.01))))

    def draw(self, generator: torch.Generator) -> None:
        draw_steps(self.step_bias, generator)


class Mamba(TokenMixer):
    def __init__(self, layer: LayerShape, state: int, taps: int) -> None:
        super().__init__()
        width, inner, rank = layer.width, EXPAND * layer.width, math.ceil(layer.width / 16)
        self.heads = layer.heads
        self.value, self.gate = Linear(width, inner, "value"), Linear(width, inner)
        self.convolution = CausalConvolution(taps, inner, bias=True)
        self.query, self.key = Linear(inner, state, "query"), Linear(inner, state, "key")
        self.query.rows_follow_width = self.key.rows_follow_width = False
        self.squeeze, self.step = Linear(inner, rank), Linear(rank, inner)
        self.step.own_scale = True
        self.rates, self.skip = StateRates(inner, state), Skip(inner)
        self.out = Linear(inner, width, "out")

    def draw(self, generator: torch.Generator) -> None:
        self.convolution.draw(generator)
        self.rates.draw(generator)
        bound = self.step.in_features**-0.5
        self.step.weight.uniform_(-bound, bound, generator=generator)

    def forward(self, x_BTD: torch.Tensor, carry: Carry) -> torch.Tensor:
        value_BTI = self.value(x_BTD)
        with full_precision(x_BTD):
            x_BTI = F.silu(self.convolution(value_BTI.float()))
            b_BTN, c_BTN = self.key(x_BTI), self.query(x_BTI)
            dt_BTI = F.softplus(self.step(self.squeeze(x_BTI)) + self.rates.step_bias)
            h_BTIN = self.states(x_BTI, dt_BTI, b_BTN)
            y_BTI = self.read(h_BTIN, x_BTI, c_BTN)
        if carry.watch:
            with torch.no_grad():
                log_decay_BTC = self.log_decay(dt_BTI).flatten(2)
            carry.record("state", state_stats(dt_BTI, log_decay_BTC, h_BTIN[:, -1], y_BTI))
            if watched(x_BTD.shape[1]):
                with full_precision(x_BTD):
                    carry.record("attention", hidden_attention(self.weights(dt_BTI, b_BTN, c_BTN), self.heads))
        return self.out(y_BTI * F.silu(self.gate(x_BTD).float()))

    def log_decay(self, dt_BTI: torch.Tensor) -> torch.Tensor:
        """Returns dt A, [B, T, I, N]."""
        return -self.rates.log_rate.exp() * dt_BTI[..., None]

    def states(self, x_BTI: torch.Tensor, dt_BTI: torch.Tensor, b_BTN: torch.Tensor) -> torch.Tensor:
        """Returns h, [B, T, I, N]."""
        return scan(self.log_decay(dt_BTI).exp(), (dt_BTI * x_BTI)[..., None] * b_BTN[:, :, None])

    def read(self, h_BTIN: torch.Tensor, x_BTI: torch.Tensor, c_BTN: torch.Tensor) -> torch.Tensor:
        """Returns y."""
        return (h_BTIN @ c_BTN[..., None])[..., 0] + self.skip.weight * x_BTI

    @torch.no_grad()
    def weights(self, dt_BTI: torch.Tensor, b_BTN: torch.Tensor, c_BTN: torch.Tensor) -> torch.Tensor:
        """Returns the T x T matrices that map the x of the probed channels to their y, [B, H, T, T]."""
        part = dt_BTI.shape[-1] // self.heads
        which = slice(part // 2, None, part)
        dt_BHT = dt_BTI[..., which].mT
        rate_H1N = self.rates.log_rate[which].exp()[:, None]
        shape = (-1, self.heads, -1, -1)
        w_BHTT = weights(c_BTN[:, None].expand(shape), b_BTN[:, None].expand(shape), -rate_H1N * dt_BHT[..., None])
        return w_BHTT * dt_BHT[..., None, :] + torch.diag_embed(
            self.skip.weight[which, None].expand(-1, w_BHTT.shape[-1])
        )


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MambaConfig(ReplacementConfig):
    """h_t = exp(dt_t A) h_t-1 + dt_t B_t x_t, y_t = C_t h_t + D x_t per channel, with convolution and gate.

    Gu & Dao 2023 (Mamba, arXiv 2312.00752), in place of attention; layouts, qk-norm and positions don't apply.
    """

    name: Literal["mamba"] = "mamba"
    state: Annotated[int, Field(ge=1)] = 16
    """Features of B and C, and so of the state per channel."""
    taps: Annotated[int, Field(ge=1)] = 4
    """Tokens that the convolution spans."""

    def mixer(self, layer: LayerShape) -> TokenMixer:
        return Mamba(layer, self.state, self.taps)
