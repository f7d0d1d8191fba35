"""Cautious AdamW, implemented here because pytorch-optimizer rescales the mask by n / (count + 1), not by its mean."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from train.optimizers.adamw import AdamW, Transform
from train.optimizers.base import OPTIMIZER


@OPTIMIZER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CautiousAdamW(AdamW):
    """AdamW that moves only where u and the gradient agree in sign: u <- u phi / mean(phi), phi = 1[u g > 0], the mean
    over a tensor and at least 1e-3. Liang et al. 2024 (Cautious Optimizers, arXiv 2411.16085), algorithm 1, and
    kyleliang919/C-Optim, c_adamw.py. update_clip is applied after the mask."""

    shards = True
    name: Literal["cautious_adamw"] = "cautious_adamw"  # type: ignore[assignment]
    lr: Annotated[float, Field(gt=0)] = 1e-2
    """Peak learning rate of the schedule."""

    def transforms(self) -> list[Transform]:
        return [mask_disagreement, *super().transforms()]


def mask_disagreement(u: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Returns u phi / mean(phi), phi = 1[u g > 0]."""
    agrees = (u * gradient > 0).to(u.dtype)
    return u * (agrees / agrees.mean().clamp_min(1e-3))
