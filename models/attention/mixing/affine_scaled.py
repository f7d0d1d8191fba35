"""Affine-scaled attention: softmax weights times a gate, plus a constant that moves the row sum towards an average.

    A_ij = alpha_i P_ij + beta_i,   beta_i = (average - alpha_i) / N,   alpha = clip(0.1 W x + 0.5, 0, 1),   j <= i

P is softmax's weight; W has one row per head. Bae et al. 2026 (arXiv 2602.23057), eqs. 6-11, with linear clipping, the
better of their two gates. The average starts at 0 and is updated by rho average + (1 - rho) mean(alpha) over the tokens
of each training batch. Since A is alpha P plus a constant, outputs are alpha softmax attention + beta sum_j<=i v_j,
without a T x T matrix.

The paper leaves some points open. Our reading:

- beta is masked like the weights; as printed it would add future values.
- N, the "key sequence length", is the training context, so rows sum to alpha_i + (average - alpha_i) i / N. With
  `count=visible` it is the number i of visible keys, and all rows sum to the average.
- The average is one number per head, saved with the model, without a gradient and frozen in evaluation. It is updated
  once per optimizer step, after the step, by the mean over all tokens of the step's micro-batches and devices. If it
  moved during a forward pass, tokens would see the gates of later ones.
- The init axis fills W.
"""

from typing import Annotated, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.head_gate import HeadGate
from models.attention.mixing.softmax import Softmax
from models.reductions import cumsum

Count = Literal["context", "visible"]


class AffineScaled(Softmax):
    keeps_ratios = False

    average_H: torch.Tensor

    def __init__(self, layer: LayerShape, rho: float, count: Count) -> None:
        super().__init__(layer.scale)
        self.gate = HeadGate(layer.width, layer.heads, bias=False)
        self.register_buffer("average_H", torch.zeros(layer.heads))
        self.rho = rho
        self.seen, self.total_H = 0, torch.zeros(layer.heads)
        self.context = layer.context if count == "context" else None

    def affine(self, x_BTD: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns alpha and beta, [B, H, T, 1] each."""
        alpha_BHT = (0.1 * self.gate(x_BTD) + 0.5).clamp(0, 1)
        length = alpha_BHT.shape[-1]
        keys = self.context or torch.arange(1, length + 1, device=alpha_BHT.device)
        beta_BHT = (self.average_H[:, None] - alpha_BHT) / keys
        return alpha_BHT[..., None], beta_BHT[..., None]

    def forward(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        alpha_BHT1, beta_BHT1 = self.affine(inputs.x_BTD)
        attended_BHTK = super().forward(inputs, v_BHTK)
        return (alpha_BHT1 * attended_BHTK + beta_BHT1 * cumsum(v_BHTK.float(), -2)).to(v_BHTK.dtype)

    @torch.no_grad()
    def observe(self, inputs: Inputs) -> None:
        alpha_BHT1, _ = self.affine(inputs.x_BTD)
        mean_H = alpha_BHT1.mean((0, 2, 3))
        self.total_H = mean_H if self.seen == 0 else self.total_H + mean_H
        self.seen += 1

    @torch.no_grad()
    def end_step(self) -> None:
        if self.seen:
            self.average_H.lerp_(_over_devices(self.total_H / self.seen), 1 - self.rho)
            self.seen = 0

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        alpha_BHT1, beta_BHT1 = self.affine(x_BTD)
        return (alpha_BHT1 * torch.softmax(z_BHTT, -1) + beta_BHT1).tril()

    def entropy(self, inputs: Inputs) -> torch.Tensor:
        return MixingRule.entropy(self, inputs)


def _over_devices(mean_H: torch.Tensor) -> torch.Tensor:
    """Averages over devices, which hold equal parts of the batch."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(mean_H)
        mean_H /= dist.get_world_size()
    return mean_H


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class AffineScaledConfig(MixingConfig):
    """alpha_i softmax_ij + (average alpha - alpha_i) / N, with a learned alpha per token and head.

    Bae et al. 2026 (Affine-Scaled Attention, arXiv 2602.23057). D H parameters per layer.
    """

    name: Literal["affine_scaled"] = "affine_scaled"
    rho: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Weight of the old running average of alpha in each update. Default: the paper's."""
    count: Count = "context"
    """N: the training context, or visible, the number i of visible keys, so that every row sums to the average."""

    def build(self, layer: LayerShape) -> MixingRule:
        return AffineScaled(layer, self.rho, self.count)
