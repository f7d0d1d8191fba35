"""Native hybrid attention, NHA: one softmax over a window of tokens and over slots that remember all earlier ones.

    K_t = K_t-1 diag(f) + k_j s^T,  V_t = diag(f) V_t-1 + s v_j^T,  j = t - window
    f = sigmoid(W x_j)^(1/8),  s = 1 - f
    p = softmax over slots m and tokens t - window < j <= t of [scale silu(q) K_t, scale q k_j]
    o = p_slots V_t + p_window v,    out = RMSNorm(silu(o))

f and s are numbers per token, head and slot. A token is in the window until `window` others follow, then in the slots.
Slots have keys silu(k), both parts have values silu(v). The norm (eps 1e-6) spans all heads. Slots start at zero and
are never masked, so at first they take weight for nothing and rows sum to less than one. Du et al. 2025 (NHA, arXiv
2510.07019; JusenD/NHA, nha_fla/layers/nha.py), after the gated slots of Zhang et al. 2024 (GSA, arXiv 2409.07146).
There RoPE rotates the window's queries and keys only; here positions rotate those of slots too, before their silu. A
position bias is added to logits of the window.

`weights` are those of single tokens: their own in the window plus, through the slots, sum_m p_m s_jm prod f.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.linear_time import cut, linear_attention, slot_attention, weights
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.linear import LinearAttention
from models.layers import Linear
from models.norms import RMSNorm
from models.probes import full_precision

EPS = 1e-6
NORMALIZER = 8.0


class Slots(nn.Module):
    """Returns log f, fp32 [B, H, T, M]."""

    def __init__(self, layer: LayerShape, slots: int) -> None:
        super().__init__()
        self.heads = layer.heads
        self.linear = Linear(layer.width, layer.heads * slots)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        with full_precision(x_BTD):
            logits_BTM = self.linear(x_BTD.float())
        return F.logsigmoid(logits_BTM).unflatten(-1, (self.heads, -1)).transpose(1, 2) / NORMALIZER


class NativeHybrid(LinearAttention):
    normalized = False

    def __init__(self, layer: LayerShape, slots: int, window: int) -> None:
        super().__init__(layer.scale)
        self.window = window
        self.slots = Slots(layer, slots)
        self.norm = RMSNorm(layer.width, EPS)

    def values(self, v_BHTK: torch.Tensor, x_BTD: torch.Tensor | None) -> torch.Tensor:
        return F.silu(v_BHTK)

    def late(self, y_BHTF: torch.Tensor) -> torch.Tensor:
        """Delays tokens by the window, with zeros before the first."""
        length = y_BHTF.shape[-2]
        return F.pad(y_BHTF, (0, 0, self.window, 0))[..., :length, :]

    def slot_parts(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns the logits of slots, and delayed s and log f, [B, H, T, M] each."""
        assert inputs.x_BTD is not None, "the gates of slots read the layer's input"
        log_f_BHTM = self.slots(inputs.x_BTD)
        s_BHTM, log_f_BHTM = self.late(-torch.expm1(log_f_BHTM)), self.late(log_f_BHTM)
        q_BHTK, k_BHTK = F.silu(inputs.q_BHTK.float()), self.late(F.silu(inputs.k_BHTK.float()))
        return self.scale * slot_attention(q_BHTK, k_BHTK, s_BHTM, log_f_BHTM), s_BHTM, log_f_BHTM

    def mixed(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        """Cuts the window's queries into chunks, each with the keys of its own chunk and of the one before."""
        z_BHTM, s_BHTM, log_f_BHTM = self.slot_parts(inputs)
        length = v_BHTK.shape[-2]
        chunk = min(self.window, length)
        q, k, v, z = (cut(x.float(), chunk) for x in (inputs.q_BHTK, inputs.k_BHTK, v_BHTK, z_BHTM))
        k, v = (torch.cat([F.pad(x, (0, 0, 0, 0, 1, 0))[:, :, :-1], x], -2) for x in (k, v))
        row_C1 = torch.arange(chunk, device=q.device)[:, None]
        back_CL = row_C1 - torch.arange(-chunk, chunk, device=q.device)
        unseen = (back_CL < 0) | (back_CL >= self.window)
        before = torch.arange(q.shape[2], device=q.device)[:, None, None] * chunk + row_C1 - back_CL < 0
        near = (self.scale * q @ k.mT).masked_fill(unseen | before, -torch.inf)
        p = torch.softmax(torch.cat([z, near], -1), -1)
        p_slots, p_near = p.split([z.shape[-1], 2 * chunk], -1)
        p_BHTM = p_slots.flatten(2, 3)[..., :length, :]
        of_slots_BHTK = linear_attention(p_BHTM, s_BHTM, self.late(v_BHTK), log_f_BHTM)
        return of_slots_BHTK + (p_near @ v).flatten(2, 3)[..., :length, :]

    def weights(self, inputs: Inputs) -> torch.Tensor:
        length, device = inputs.q_BHTK.shape[-2], inputs.q_BHTK.device
        with full_precision(inputs.q_BHTK):
            z_BHTM, s_BHTM, log_f_BHTM = self.slot_parts(inputs)
            near_BHTT = self.scale * inputs.q_BHTK.float() @ inputs.k_BHTK.float().mT
            if inputs.bias_HTT is not None:
                near_BHTT = near_BHTT + inputs.bias_HTT
            seen_TT = torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - self.window)
            near_BHTT = near_BHTT.masked_fill(~seen_TT, -torch.inf)
            p_BHTM, p_BHTT = torch.softmax(torch.cat([z_BHTM, near_BHTT], -1), -1).split([z_BHTM.shape[-1], length], -1)
            # Column j + window of the delayed sequence is token j.
            late_BHTT = weights(p_BHTM, s_BHTM, log_f_BHTM)[..., self.window :]
        return p_BHTT + F.pad(late_BHTT, (0, length - late_BHTT.shape[-1]))

    def finish(self, mixed_BHTK: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        with full_precision(mixed_BHTK):
            normed_BTD = self.norm(F.silu(mixed_BHTK.float()).transpose(1, 2).flatten(2))
        return normed_BTD.unflatten(-1, (mixed_BHTK.shape[1], -1)).transpose(1, 2).to(mixed_BHTK.dtype)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NHAConfig(MixingConfig):
    """One softmax over the last `window` tokens and over slots, decaying sums of earlier keys and values, linear in T.

    Du et al. 2025 (NHA, arXiv 2510.07019). D H slots + D parameters per layer.
    """

    name: Literal["nha"] = "nha"
    slots: Annotated[int, Field(ge=1)] = 64
    """Slots per head."""
    window: Annotated[int, Field(ge=1)] = 32
    """Tokens that a token sees one by one, itself included."""

    def build(self, layer: LayerShape) -> MixingRule:
        return NativeHybrid(layer, self.slots, self.window)
