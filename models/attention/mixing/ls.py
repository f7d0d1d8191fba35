"""Long-short attention: softmax in all heads, most of which see only the last few tokens.

    softmax_j(scale q_i k_j + bias)    over j <= i in the first `global_heads` heads, over i - window < j <= i else

Hajra 2025 (LS-attention, arXiv 2505.15548): dedicated heads handle short-range dependencies without large logits. We
know the paper from its abstract and from restatements: one global head and eleven local ones with a span of 100, in
GPT-2 models with absolute positions. Our readings: the window includes the token itself, and its default is the share
100/1024 of the context, because a window of 100 would exceed short contexts.

Probes of logits cover the pairs that a head sees. Exceptions: cosine_mean and optimizer.qk_clip use all j <= i.
"""

import math
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.softmax import Softmax
from models.probes import Stats

if TYPE_CHECKING:
    from models.architecture import Architecture

CHUNK = 128
"""Minimum number of queries per kernel call for local heads."""


class LongShort(Softmax):
    """Encodes the window in the bias and reuses softmax's paths.

    Without a position bias, long sequences are cut into chunks for the local heads, so their cost grows only like T.
    """

    def __init__(self, scale: float, heads: int, global_heads: int, window: int) -> None:
        super().__init__(scale)
        self.heads, self.global_heads, self.window = heads, global_heads, window

    def within(self, inputs: Inputs) -> Inputs:
        """Adds a bias of -inf beyond the window of the local heads."""
        q_BHTK, bias_HTT = inputs.q_BHTK, inputs.bias_HTT
        length = q_BHTK.shape[-2]
        far_TT = torch.ones(length, length, dtype=torch.bool, device=q_BHTK.device).tril(-self.window)
        local_H = torch.arange(self.heads, device=q_BHTK.device) >= self.global_heads
        if bias_HTT is None:
            bias_HTT = torch.zeros(self.heads, length, length, device=q_BHTK.device)
        return inputs._replace(bias_HTT=bias_HTT.masked_fill(far_TT & local_H[:, None, None], -math.inf))

    def forward(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        q_BHTK, k_BHTK, bias_HTT, _ = inputs
        if bias_HTT is not None or v_BHTK.shape[-2] <= 2 * max(self.window, CHUNK):
            return super().forward(self.within(inputs), v_BHTK)
        whole, local = slice(self.global_heads), slice(self.global_heads, None)
        mixed = [self.fused(q_BHTK[:, whole], k_BHTK[:, whole], v_BHTK[:, whole])] if self.global_heads else []
        return torch.cat([*mixed, self.chunked(q_BHTK[:, local], k_BHTK[:, local], v_BHTK[:, local])], 1)

    def chunked(self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor) -> torch.Tensor:
        """Runs local heads in chunks of C queries, each with the L = C + window - 1 keys visible to any of them."""
        heads, length, chunk, before = *q_BHTK.shape[1:3], max(self.window, CHUNK), self.window - 1
        rest = -length % chunk
        q_BHCK = F.pad(q_BHTK, (0, 0, 0, rest)).unflatten(2, (-1, chunk)).flatten(1, 2)
        k_BHLK, v_BHLK = (
            F.pad(x_BHTK, (0, 0, before, rest)).unfold(2, before + chunk, chunk).mT.flatten(1, 2)
            for x_BHTK in (k_BHTK, v_BHTK)
        )
        row_C1 = torch.arange(chunk, device=q_BHTK.device)[:, None]
        column_L = torch.arange(before + chunk, device=q_BHTK.device)
        seen_CL = (column_L >= row_C1) & (column_L <= row_C1 + before)
        first_N = torch.arange(0, length + rest, chunk, device=q_BHTK.device)[:, None, None]
        seen_NCL = seen_CL & (first_N + column_L >= before)
        mask_NCL = torch.zeros(seen_NCL.shape, device=q_BHTK.device).masked_fill(~seen_NCL, -math.inf)
        mixed_BHCK = self.fused(q_BHCK, k_BHLK, v_BHLK, mask_NCL.repeat(heads, 1, 1))
        return mixed_BHCK.unflatten(1, (heads, -1)).flatten(2, 3)[:, :, :length]

    def weights(self, inputs: Inputs) -> torch.Tensor:
        return super().weights(self.within(inputs))

    def entropy(self, inputs: Inputs) -> torch.Tensor:
        return super().entropy(self.within(inputs))

    def watch_logits(self, inputs: Inputs) -> Stats:
        return super().watch_logits(self.within(inputs))


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LongShortConfig(MixingConfig):
    """Softmax over all j <= i in the first `global_heads` heads, over the last `window` tokens in the others.

    Hajra 2025 (LS-attention, arXiv 2505.15548).
    """

    name: Literal["ls"] = "ls"
    dot_product = True
    global_heads: Annotated[int, Field(ge=0)] = 1
    """Number of heads that see all tokens."""
    window: Annotated[int, Field(ge=1)] | None = None
    """Number of tokens that local heads see, the token itself included. null: 100/1024 of the context, at least 2."""

    def window_for(self, context: int) -> int:
        return max(2, round(context * 100 / 1024)) if self.window is None else self.window

    def build(self, layer: LayerShape) -> MixingRule:
        return LongShort(layer.scale, layer.heads, self.global_heads, self.window_for(layer.context))

    def fits(self, config: "Architecture") -> None:
        super().fits(config)
        if self.global_heads >= config.model.heads:
            raise ValueError(
                f"attention=ls with attention.global_heads={self.global_heads} leaves none of model.heads="
                f"{config.model.heads} local: use attention.global_heads={max(0, config.model.heads - 1)} or "
                f"attention=softmax"
            )
