"""Cross-entropy of StableMax probabilities. Shape suffixes: N tokens, V vocabulary."""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.probes import Stats
from train.losses.base import LOSS, LossConfig, Objective, Output, at_target


def s(x: torch.Tensor) -> torch.Tensor:
    """x + 1 for x >= 0, 1 / (1 - x) below: grows linearly both ways, with slope 1 on either side of 0."""
    # clamp: the branch that is not taken must have a finite gradient.
    return torch.where(x >= 0, x + 1, 1 / (1 - x.clamp_max(0)))


class StableMaxObjective(Objective):
    def main(self, output: Output, targets_N: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        s_NV = s(output.logits_NV)
        return (s_NV.sum(-1).log() - at_target(s_NV, targets_N).log()).mean(), {}


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StableMax(LossConfig):
    """-log(s(z_y) / sum_v s(z_v)), s in place of exp.

    Prieto et al. 2025 (arXiv 2501.04697), against softmax collapse. Their code takes it in fp64; the logarithms are
    taken apart here, which needs no more than fp32: s(z) neither over- nor underflows for |z| < 1e30.
    """

    name: Literal["stablemax"] = "stablemax"

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return StableMaxObjective(self)
