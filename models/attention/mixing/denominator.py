"""Softmax attention with its denominator replaced: weights w_ij / D_i, w_ij = exp(min(z_ij, 5)).

Mongaras & Larson 2025 (arXiv 2507.23632) ablate what the sum over w does. The forms are those of their code
(gmongaras/On-the-Expressiveness-of-Softmax-Attention-A-Recurrent-Neural-Network-Perspective,
GPT_Trainer/LlamaDecoderLayer.py). i is the number of keys visible to row i:

| form | D_i | also has | name there |
|---|---|---|---|
| clamp | max(sum_j w_ij, 1) | | softmax_clamp_denom |
| detach | the same, without a gradient | | softmax_detach_denom |
| detach_gate | sum_j w_ij + 1e-4, without a gradient | output gate | softmax_detach_denom_gate |
| div_s | i | | softmax_divs |
| gate | 1 | output gate | softmax_gate |
| div_s_gate | i | output gate | softmax_divS_gate |
| div_s_norm | i | RMSNorm | softmax_divS_norm |
| rms_norm | 1 | RMSNorm | gated_softmax_no_gate_rmsnorm_nodivS |
| l2_norm | 1 | x / norm(x) | gated_softmax_no_gate_L2norm_nodivS |
| layer_norm | i | LayerNorm | gated_softmax_no_gate |
| gated | i | output gate, value gate | gated_softmax_no_norm |
| gated_norm | i | output gate, value gate, LayerNorm | gated_softmax |

A gate is sigmoid(g x + b), one number per head and token. Output gates read the layer's input x at the row, value gates
at the key. Norms act on each head's weighted values; a layer's heads share their parameters, and eps is torch's
default. The init axis fills g. b starts at 0, unlike in torch's Linear, which draws it. All of them decay.

A norm removes any positive factor of a row. So without the bound of 5, it makes all denominators equivalent: weights
are then softmax's, and without gates they run on its fused kernel.
"""

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.softmax import Softmax
from models.layers import Linear
from models.norms import RMSNorm
from models.probes import full_precision

FormName = Literal[
    "clamp",
    "detach",
    "detach_gate",
    "div_s",
    "gate",
    "div_s_gate",
    "div_s_norm",
    "rms_norm",
    "l2_norm",
    "layer_norm",
    "gated",
    "gated_norm",
]


class Form(NamedTuple):
    denominator: Literal["one", "keys", "clamped", "detached", "detached_sum"]
    norm: Literal["rms", "l2", "layer"] | None = None
    output_gate: bool = False
    value_gate: bool = False


FORMS: dict[FormName, Form] = {
    "clamp": Form("clamped"),
    "detach": Form("detached"),
    "detach_gate": Form("detached_sum", output_gate=True),
    "div_s": Form("keys"),
    "gate": Form("one", output_gate=True),
    "div_s_gate": Form("keys", output_gate=True),
    "div_s_norm": Form("keys", "rms"),
    "rms_norm": Form("one", "rms"),
    "l2_norm": Form("one", "l2"),
    "layer_norm": Form("keys", "layer"),
    "gated": Form("keys", output_gate=True, value_gate=True),
    "gated_norm": Form("keys", "layer", output_gate=True, value_gate=True),
}


class Gate(nn.Module):
    """Returns sigmoid(g x + b), fp32 [B, H, T]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.project = Linear(width, heads)
        self.bias = nn.Parameter(torch.zeros(heads))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        with full_precision(x_BTD):
            return torch.sigmoid(self.project(x_BTD.float()) + self.bias).transpose(1, 2)


class Normalize(nn.Module):
    """x / norm(x)."""

    def forward(self, x_K: torch.Tensor) -> torch.Tensor:
        return F.normalize(x_K, dim=-1)


def _norm(name: Literal["rms", "l2", "layer"] | None, dim: int) -> nn.Module:
    match name:
        case "rms":
            return RMSNorm(dim, torch.finfo(torch.float32).eps)
        case "l2":
            return Normalize()
        case "layer":
            return nn.LayerNorm(dim)
        case None:
            return nn.Identity()


class Denominator(Softmax):
    def __init__(self, layer: LayerShape, form: Form, bound: float | None) -> None:
        super().__init__(layer.scale)
        self.form, self.bound = form, bound
        self.output_gate = Gate(layer.width, layer.heads) if form.output_gate else None
        self.value_gate = Gate(layer.width, layer.heads) if form.value_gate else None
        self.norm = _norm(form.norm, layer.head_dim)

    @property
    def gated(self) -> bool:
        return self.output_gate is not None or self.value_gate is not None

    def forward(self, inputs: Inputs, v_BHTK: torch.Tensor) -> torch.Tensor:
        if self.bound is None and not self.gated:
            return self.finish(super().forward(inputs, v_BHTK))
        return MixingRule.forward(self, inputs, v_BHTK)

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        # Without a bound, a norm follows, so the choice of denominator does not matter.
        w_BHTT = torch.softmax(z_BHTT, -1) if self.bound is None else self._divided(z_BHTT.clamp_max(self.bound).exp())
        if self.output_gate is not None:
            w_BHTT = w_BHTT * self.output_gate(x_BTD)[..., None]
        if self.value_gate is not None:
            w_BHTT = w_BHTT * self.value_gate(x_BTD)[..., None, :]
        return w_BHTT

    def _divided(self, w_BHTT: torch.Tensor) -> torch.Tensor:
        match self.form.denominator:
            case "one":
                return w_BHTT
            case "keys":
                length = w_BHTT.shape[-1]
                return w_BHTT / torch.arange(1, length + 1, device=w_BHTT.device, dtype=w_BHTT.dtype)[:, None]
            case "clamped":
                return w_BHTT / w_BHTT.sum(-1, keepdim=True).clamp_min(1.0)
            case "detached":
                return w_BHTT / w_BHTT.sum(-1, keepdim=True).clamp_min(1.0).detach()
            case "detached_sum":
                return w_BHTT / (w_BHTT.sum(-1, keepdim=True).detach() + 1e-4)

    def finish(self, mixed_BHTK: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        if self.form.norm is None:
            return mixed_BHTK
        with full_precision(mixed_BHTK):
            return self.norm(mixed_BHTK.float()).to(mixed_BHTK.dtype)

    def entropy(self, inputs: Inputs) -> torch.Tensor:
        return MixingRule.entropy(self, inputs)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DenominatorConfig(MixingConfig):
    """exp(min(z, 5)) of the scaled logits of visible keys with a norm, gates, a count or a constant in place of
    softmax's denominator. Mongaras & Larson 2025 (arXiv 2507.23632).
    """

    name: Literal["denominator"] = "denominator"
    form: FormName = "div_s_norm"
    """Replacement of the denominator: clamp, detach, detach_gate, div_s, gate, div_s_gate, div_s_norm, rms_norm,
    l2_norm, layer_norm, gated or gated_norm (table at the top of the file). The authors find norms match softmax."""
    bound: Annotated[float, Field(gt=0)] | None = 5.0
    """Logits are clamped to this before exp. null: no bound, for forms with a norm. Default: the authors' code."""

    @model_validator(mode="after")
    def _is_bounded(self) -> "DenominatorConfig":
        if self.bound is None and FORMS[self.form].norm is None:
            raise ValueError(f"bound=null lets exp overflow with form={self.form}: use form=l2_norm or bound=5")
        return self

    @property
    def dot_product(self) -> bool:  # type: ignore[override]
        """Returns False for gated forms, whose weights depend on more than logits."""
        form = FORMS[self.form]
        return not (form.output_gate or form.value_gate)

    def build(self, layer: LayerShape) -> MixingRule:
        return Denominator(layer, FORMS[self.form], self.bound)
