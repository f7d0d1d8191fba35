"""Masking of training inputs, the `masking` axis. Targets, and inputs in validation, stay as they are.

Shape suffixes: B sequences, T tokens, S sequences of the whole batch.
"""

from typing import TYPE_CHECKING, Annotated, Literal, cast

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, Axis, Choice

if TYPE_CHECKING:
    from models.architecture import Architecture
    from models.training import Training

MASKS = 2
"""Spawn key of the draws of masked positions, which share no numbers with those of losses."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MaskingConfig(Choice):
    name: str
    masks = False  # whether the model has a mask token

    def mask(self, tokens_BT: torch.Tensor, mask_id: int, rows: range, seed: int, step: int) -> torch.Tensor:
        """Returns the inputs of a training step; `rows` are the places of these sequences in the whole batch."""
        return tokens_BT


MASKING: Axis[MaskingConfig] = Axis("masking")


@MASKING.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoMasking(MaskingConfig):
    """The inputs are the tokens of the text. Vaswani et al. 2017."""

    name: Literal["none"] = "none"


@MASKING.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MEAP(MaskingConfig):
    """A share of the input tokens is replaced by a learned mask token; the targets are all next tokens, as ever. Zhuang
    et al. 2025 (Mask-Enhanced Autoregressive Prediction, MEAP, arXiv 2502.07490); scitix/MEAP.

    Each sequence and step has positions of its own, the last one never. The authors' code draws them for a micro-batch,
    from 51 seeds. The mask token has no row in the head.
    """

    name: Literal["meap"] = "meap"
    masks = True
    share: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """Share of masked positions, rounded down but at least one. The authors: 0.15, and 0.05 to 0.2 in ablations."""
    shared: bool = False
    """Mask the same positions in all sequences of a step, as the authors' code does in a micro-batch."""

    def fits(self, config: "Architecture") -> None:
        context = getattr(cast("Training", config), "context", 2)
        if context < 2:
            raise ValueError(f"masking=meap never masks the last token, and context={context} has no other: use 2")
        data = getattr(cast("Training", config), "data", None)
        if data is not None and data.needs_every_token:
            raise ValueError(
                f"masking=meap hides tokens without which no answer of data={data.name} can be told: use masking=none"
            )

    def count(self, length: int) -> int:
        return min(length - 1, max(1, int(length * self.share)))

    def mask(self, tokens_BT: torch.Tensor, mask_id: int, rows: range, seed: int, step: int) -> torch.Tensor:
        key = np.random.SeedSequence((seed, step), spawn_key=(MASKS,)).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(key))
        length = tokens_BT.shape[1]
        # One row after the other, so that a row's draws depend on its place alone.
        order_ST = torch.rand(1 if self.shared else rows[-1] + 1, length - 1, generator=generator).argsort(-1)
        chosen_BT = order_ST[[0] * len(rows) if self.shared else list(rows), : self.count(length)]
        return tokens_BT.scatter(1, chosen_BT.to(tokens_BT.device), mask_id)
