"""Softmax attention, softmax_j<=i(scale q_i k_j + bias), scale 1/sqrt(head_dim) by default. Vaswani et al. 2017."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing import ATTENTION, LayerShape, MixingConfig, MixingRule
from models.probes import full_precision, fused_entropy


class Softmax(MixingRule):
    """Runs on torch's fused kernel; its softmax is fp32 inside, whatever the dtype of q, k and v.

    On CPUs all of it is fp32: the kernel's backward pass in bf16 takes several times as long as in fp32.
    """

    def forward(
        self,
        q_BHTK: torch.Tensor,
        k_BHTK: torch.Tensor,
        v_BHTK: torch.Tensor,
        bias_HTT: torch.Tensor | None = None,
        x_BTD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        dtype = torch.float32 if v_BHTK.is_cpu and v_BHTK.dtype == torch.bfloat16 else v_BHTK.dtype
        mask_BHTT = None
        if bias_HTT is not None:
            length = q_BHTK.shape[-2]
            future_TT = torch.ones(length, length, dtype=torch.bool, device=q_BHTK.device).triu(1)
            mask_BHTT = bias_HTT.masked_fill(future_TT, -math.inf).to(dtype)[None]
        with full_precision(q_BHTK):
            out_BHTK = F.scaled_dot_product_attention(
                q_BHTK.to(dtype),
                k_BHTK.to(dtype),
                v_BHTK.to(dtype),
                attn_mask=mask_BHTT,
                is_causal=mask_BHTT is None,
                scale=self.scale,
            )
        return out_BHTK.to(v_BHTK.dtype)

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        return torch.softmax(z_BHTT, -1)

    def entropy(
        self,
        q_BHTK: torch.Tensor,
        k_BHTK: torch.Tensor,
        bias_HTT: torch.Tensor | None = None,
        x_BTD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if bias_HTT is not None or q_BHTK.device.type not in ("cpu", "cuda"):
            return super().entropy(q_BHTK, k_BHTK, bias_HTT, x_BTD)
        return fused_entropy(q_BHTK, k_BHTK, self.scale)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SoftmaxConfig(MixingConfig):
    name: Literal["softmax"] = "softmax"
    dot_product = True

    def build(self, layer: LayerShape) -> MixingRule:
        return Softmax(layer.scale)
