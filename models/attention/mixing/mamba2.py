"""Mamba-2: a state space with one decay per head, its convolution and its gate, in place of attention (SSD).

    z, x, B, C, dt = W x_in;    x, B, C = silu(conv(x, B, C));    dt = softplus(dt + bias)
    h_t = exp(-A dt_t) h_t-1 + dt_t B_t x_t^T,    y_t = C_t h_t + D x_t,    out = W_out RMSNorm(y * silu(z))

x and z are twice as wide as the model and split into heads as wide as the model's, so there are twice as many of them.
B and C have `state` features that all heads share, A, dt and D are numbers per head. The convolution is causal and
depthwise with a bias, the norm (eps 1e-5) spans all heads. A starts uniform in (1, 16), softplus(bias) log-uniform in
(0.001, 0.1), D at one; weight decay skips the three. Dao & Gu 2024 (Mamba-2, arXiv 2405.21060), section 7;
state-spaces/mamba, modules/mamba2.py and ssd_minimal.py. There one matrix makes z, x, B, C and dt; here each has its
own. Their heads have 64 features.

rope=true rotates C like queries and B like keys, as the state-space layers of Cheems (Shi et al. 2024, arXiv
2407.16958; LoserCheems/WonderfulMatrices). Its layout, with attention in every eighth block, is
attention.pattern=[self,self,self,self,self,self,self,softmax].

On watch steps the explicit weights L_ij C_i B_j dt_j + [i = j] D are probed as attention weights, L the decay from j to
i, averaged over the two heads that stand for a head of attention. They are signed. There are no logits. `state_stats`
of all heads are recorded as `state`.

Shape suffixes: B batch, T tokens, D model width, I inner width, G heads of the mixer, P their features, N state.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.convolution import CausalConvolution
from models.attention.linear_time import linear_attention, weights
from models.attention.mixing.base import ATTENTION, LayerShape
from models.attention.mixing.recurrence import Rates
from models.attention.mixing.replacement import ReplacementConfig, hidden_attention, watched
from models.carry import Carry
from models.layers import Linear
from models.mixer import TokenMixer
from models.norms import RMSNorm
from models.positions import Rotary, RotaryConfig
from models.probes import full_precision, state_stats
from models.reductions import cumsum

EXPAND = 2
EPS = 1e-5


class Skip(nn.Module):
    """D, the weight of the direct path from input to output; weight decay skips it."""

    decays = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))


class Mamba2(TokenMixer):
    def __init__(self, layer: LayerShape, state: int, taps: int, rope: bool) -> None:
        super().__init__()
        width, inner = layer.width, EXPAND * layer.width
        self.heads, self.mixer_heads = layer.heads, EXPAND * layer.heads
        self.query, self.key = Linear(width, state, "query"), Linear(width, state, "key")
        self.query.rows_follow_width = self.key.rows_follow_width = False
        self.value, self.gate = Linear(width, inner, "value"), Linear(width, inner)
        self.step = Linear(width, self.mixer_heads)
        self.out = Linear(inner, width, "out")
        self.convolution = CausalConvolution(taps, inner + 2 * state, bias=True)
        self.rates = Rates(self.mixer_heads, 1.0, 16.0)
        self.skip = Skip(self.mixer_heads)
        self.norm = RMSNorm(inner, EPS)
        self.turn = Rotary(state, layer.context, RotaryConfig()) if rope else None

    def draw(self, generator: torch.Generator) -> None:
        self.convolution.draw(generator)
        self.rates.draw(generator)

    def parts(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns C and B [B, 1, T, N], x [B, G, T, P] and dt [B, G, T], fp32."""
        projected = torch.cat([self.value(x_BTD), self.key(x_BTD), self.query(x_BTD)], -1)
        with full_precision(x_BTD):
            mixed = F.silu(self.convolution(projected.float()))
            inner, state = self.value.out_features, self.key.out_features
            x_BTI, b_BTN, c_BTN = mixed.split([inner, state, state], -1)
            c_B1TN, b_B1TN = c_BTN[:, None], b_BTN[:, None]
            if self.turn is not None:
                c_B1TN, b_B1TN = self.turn.rotate(c_B1TN, b_B1TN)
            dt_BGT = self.rates.step(self.step(x_BTD.float())).mT
        return c_B1TN, b_B1TN, x_BTI.unflatten(-1, (self.mixer_heads, -1)).transpose(1, 2), dt_BGT

    def log_decay(self, dt_BGT: torch.Tensor) -> torch.Tensor:
        """Returns -A dt, [B, G, T]."""
        return -self.rates.log_rate.exp()[:, None] * dt_BGT

    def forward(self, x_BTD: torch.Tensor, carry: Carry) -> torch.Tensor:
        c_B1TN, b_B1TN, x_BGTP, dt_BGT = self.parts(x_BTD)
        with full_precision(x_BTD):
            y_BGTP = linear_attention(c_B1TN, b_B1TN, dt_BGT[..., None] * x_BGTP, self.log_decay(dt_BGT))
            y_BGTP = y_BGTP + self.skip.weight[:, None, None] * x_BGTP
            if carry.watch:
                state_BGNP = self.last_state(b_B1TN, x_BGTP, dt_BGT)
                with torch.no_grad():
                    log_decay_BTG = self.log_decay(dt_BGT).mT
                carry.record("state", state_stats(dt_BGT, log_decay_BTG, state_BGNP, y_BGTP))
                if watched(x_BTD.shape[1]):
                    carry.record("attention", hidden_attention(self.weights(c_B1TN, b_B1TN, dt_BGT), self.heads))
        y_BTI = y_BGTP.transpose(1, 2).flatten(2)
        return self.out(self.norm(y_BTI * F.silu(self.gate(x_BTD).float())))

    @torch.no_grad()
    def last_state(self, b_B1TN: torch.Tensor, x_BGTP: torch.Tensor, dt_BGT: torch.Tensor) -> torch.Tensor:
        """Returns h after the last token, [B, G, N, P]."""
        sum_BGT = cumsum(self.log_decay(dt_BGT), -1)
        kept_BGT = (sum_BGT[..., -1:] - sum_BGT).exp()
        return b_B1TN.mT @ ((kept_BGT * dt_BGT)[..., None] * x_BGTP)

    @torch.no_grad()
    def weights(self, c_B1TN: torch.Tensor, b_B1TN: torch.Tensor, dt_BGT: torch.Tensor) -> torch.Tensor:
        """Returns the T x T matrices that map each head's x to its y, [B, G, T, T]."""
        w_BGTT = weights(c_B1TN, b_B1TN, self.log_decay(dt_BGT)) * dt_BGT[..., None, :]
        return w_BGTT + torch.diag_embed(self.skip.weight[:, None].expand(-1, w_BGTT.shape[-1]))


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Mamba2Config(ReplacementConfig):
    """h_t = exp(-A dt_t) h_t-1 + dt_t B_t x_t^T, y_t = C_t h_t + D x_t per head, with convolution, gate and norm.

    Dao & Gu 2024 (Mamba-2 / SSD, arXiv 2405.21060), in place of attention; layouts, qk-norm and positions don't apply.
    """

    name: Literal["mamba2"] = "mamba2"
    state: Annotated[int, Field(ge=2, multiple_of=2)] = 128
    """Features of B and C, and so of the state per feature of x."""
    taps: Annotated[int, Field(ge=1)] = 4
    """Tokens that the convolution spans."""
    rope: bool = False
    """Rotate C and B by position, as in Cheems."""

    def mixer(self, layer: LayerShape) -> TokenMixer:
        return Mamba2(layer, self.state, self.taps, self.rope)
