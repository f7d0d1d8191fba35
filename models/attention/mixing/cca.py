"""Core-context-aware attention, CCA: near tokens one by one, far ones pooled into cores of `group` tokens.

    a = softmax over the group of (scale q_last k_m),  K = sum a_m k_m,  V = sum a_m v_m    of each whole group

Row i (from 0) sees the cores of groups 0 ... g_i - 1 and the tokens group g_i ... i, with
g_i = max(0, floor((i - local) / group)), in one softmax of scaled logits plus position biases. q_last is the query of
the group's last token. Chen et al. 2024 (CCA, arXiv 2412.12465; equations as restated by readers and in the README of
chenyaofo/CCA-Attention, which has no code of the model). Our readings: a core takes keys after positions have rotated
them, and the bias of its last token. At least `local` tokens are seen one by one, and `local` + `group` at most.

`weights` are those of single tokens: a core's weight times a. T x T matrices are computed, as the masks of both parts
need no less memory at the lengths of training here.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape, MixingConfig, MixingRule
from models.probes import full_precision


class CoreContext(MixingRule):
    def __init__(self, scale: float, group: int, local: int) -> None:
        super().__init__(scale)
        self.group, self.local = group, local

    def weights(self, inputs: Inputs) -> torch.Tensor:
        q_BHTK, k_BHTK, bias_HTT = inputs.q_BHTK.float(), inputs.k_BHTK.float(), inputs.bias_HTT
        length, device, group = q_BHTK.shape[-2], q_BHTK.device, self.group
        row_T1 = torch.arange(length, device=device)[:, None]
        pooled_T1 = torch.div(row_T1 - self.local, group, rounding_mode="floor").clamp_min(0)
        column_T = torch.arange(length, device=device)
        with full_precision(q_BHTK):
            z_BHTT = self.scale * q_BHTK @ k_BHTK.mT
            if bias_HTT is not None:
                z_BHTT = z_BHTT + bias_HTT
            z_BHTT = z_BHTT.masked_fill((column_T > row_T1) | (column_T < group * pooled_T1), -torch.inf)
            count = length // group
            if count == 0:
                return torch.softmax(z_BHTT, -1)
            k_BHNGK = k_BHTK[:, :, : count * group].unflatten(2, (count, group))
            last_T = torch.arange(group - 1, count * group, group, device=device)
            a_BHNG = torch.softmax(self.scale * (k_BHNGK @ q_BHTK[:, :, last_T, :, None])[..., 0], -1)
            core_BHNK = (a_BHNG[..., None] * k_BHNGK).sum(-2)
            z_BHTN = self.scale * q_BHTK @ core_BHNK.mT
        if bias_HTT is not None:
            z_BHTN = z_BHTN + bias_HTT[..., last_T]
        z_BHTN = z_BHTN.masked_fill(torch.arange(count, device=device) >= pooled_T1, -torch.inf)
        of_cores_BHTN, of_tokens_BHTT = torch.softmax(torch.cat([z_BHTN, z_BHTT], -1), -1).split([count, length], -1)
        spread_BHTT = (of_cores_BHTN[..., None] * a_BHNG[:, :, None]).flatten(-2)
        return torch.cat([of_tokens_BHTT[..., : count * group] + spread_BHTT, of_tokens_BHTT[..., count * group :]], -1)


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CCAConfig(MixingConfig):
    """Softmax over near tokens and over cores, each a weighted mean of the keys and values of `group` far tokens.

    Chen et al. 2024 (CCA, arXiv 2412.12465); without access to code, partly our reading.
    """

    name: Literal["cca"] = "cca"
    group: Annotated[int, Field(ge=1)] = 16
    """Tokens pooled into a core."""
    local: Annotated[int, Field(ge=1)] | None = None
    """Least number of near tokens. null: 1/8 of the context, at least 1."""

    def local_for(self, context: int) -> int:
        return max(1, round(context / 8)) if self.local is None else self.local

    def build(self, layer: LayerShape) -> MixingRule:
        return CoreContext(layer.scale, self.group, self.local_for(layer.context))
