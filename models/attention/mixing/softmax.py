"""Softmax attention, softmax_j<=i(scale q_i k_j + bias), scale 1/sqrt(head_dim) by default. Vaswani et al. 2017."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.probes import full_precision, fused_entropy


class Softmax(MixingRule):
    """Runs on torch's fused kernel; its softmax is fp32 inside, whatever the dtype of q, k and v.

    On CPUs all of it is fp32: the kernel's backward pass in bf16 takes several times as long as in fp32.
    """

    keeps_ratios = True

    def forward(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        q_BHTK, k_BHTK, bias_HTT, _ = inputs
        if bias_HTT is None:
            return self.fused(q_BHTK, k_BHTK, v_BHTK)
        length = q_BHTK.shape[-2]
        future_TT = torch.ones(length, length, dtype=torch.bool, device=q_BHTK.device).triu(1)
        return self.fused(q_BHTK, k_BHTK, v_BHTK, bias_HTT.masked_fill(future_TT, -math.inf))

    def fused(
        self,
        q_BHTK: torch.Tensor,
        k_BHSK: torch.Tensor,
        v_BHSK: torch.Tensor,
        mask_HTS: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Runs the kernel on logits plus `mask_HTS` if it is given, else with a causal mask."""
        dtype = torch.float32 if v_BHSK.is_cpu and v_BHSK.dtype == torch.bfloat16 else v_BHSK.dtype
        with full_precision(q_BHTK):
            q, k, v = _one_width(q_BHTK.to(dtype), k_BHSK.to(dtype), v_BHSK.to(dtype))
            mask = None if mask_HTS is None else mask_HTS.to(dtype)[None]
            out_BHTK = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale)
        return out_BHTK[..., : v_BHSK.shape[-1]].to(v_BHSK.dtype)

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        return torch.softmax(z_BHTT, -1)

    def entropy(self, inputs: Inputs) -> torch.Tensor:
        if not has_fused_entropy(inputs):
            return super().entropy(inputs)
        return fused_entropy(inputs.q_BHTK, inputs.k_BHTK, self.scale)


def has_fused_entropy(inputs: Inputs) -> bool:
    """Returns whether a kernel can compute softmax's entropy: only without a bias, and not on every device."""
    return inputs.bias_HTT is None and inputs.q_BHTK.device.type in ("cpu", "cuda")


def _one_width(*heads: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Zero-pads q, k and v to one feature count if they differ; fused kernels need that, on GPUs a multiple of 8."""
    widths = [x.shape[-1] for x in heads]
    if len(set(widths)) == 1:
        return heads
    width = max(widths)
    width += -width % 8 if heads[0].is_cuda else 0
    return tuple(F.pad(x, (0, width - x.shape[-1])) for x in heads)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SoftmaxConfig(MixingConfig):
    name: Literal["softmax"] = "softmax"
    dot_product = True

    def build(self, layer: LayerShape) -> MixingRule:
        return Softmax(layer.scale)
