"""Softmax attention over the last few tokens, softmax_j(scale q_i k_j + bias) over i - window < j <= i.

Beltagy et al. 2020 (Longformer, arXiv 2004.05150), section 3.1; the sliding window of Based (Arora et al. 2024, arXiv
2402.18668), with 128 tokens, and of Mistral 7B. The window includes the token itself. Its default is a share of the
context, because 128 would exceed short contexts: 1/16, as 128 of Based's 2,048. The cost is linear in T.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.attention.mixing.base import ATTENTION, LayerShape, MixingConfig, MixingRule
from models.attention.mixing.ls import LongShort


@ATTENTION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class WindowConfig(MixingConfig):
    """Softmax over the last `window` tokens, i - window < j <= i.

    Beltagy et al. 2020 (Longformer, arXiv 2004.05150), section 3.1.
    """

    name: Literal["window"] = "window"
    dot_product = True
    window: Annotated[int, Field(ge=1)] | None = None
    """Number of tokens that a token sees, itself included. null: 1/16 of the context, at least 2."""

    def window_for(self, context: int) -> int:
        return max(2, round(context / 16)) if self.window is None else self.window

    def build(self, layer: LayerShape) -> MixingRule:
        return LongShort(layer.scale, layer.heads, 0, self.window_for(layer.context))
