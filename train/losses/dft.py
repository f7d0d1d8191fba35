"""DFT, the loss of dynamic fine-tuning. Shape suffix: N tokens."""

from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.probes import Stats
from train.losses.base import LOSS, LossConfig, Objective, Output
from train.losses.fused import cross_entropy_z


class DFTObjective(Objective):
    def main(self, output: Output, targets_N: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        loss_N, *_ = cross_entropy_z(output.logits_NV, targets_N, 0.0)
        p_N = torch.exp(-loss_N.detach())
        return (p_N * loss_N).mean(), {"output/target_probability": p_N.mean()}


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DFT(LossConfig):
    """-p_y log p_y with no gradient through the first factor: unlikely tokens count less. Wu et al. 2025 (Dynamic
    Fine-Tuning, DFT, arXiv 2508.05629).

    Published for fine-tuning. From scratch all p_y are about 1 / V, so that it starts with 1 / V of cross-entropy's
    gradient.
    """

    name: Literal["dft"] = "dft"

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return DFTObjective(self)
