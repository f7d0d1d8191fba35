"""NorMuon, implemented by pytorch-optimizer."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from train.optimizers.base import OPTIMIZER
from train.optimizers.muon import MuonFields


@OPTIMIZER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NorMuon(MuonFields):
    """Muon whose update O has its rows divided by the root of v, a running mean of mean_j O_ij^2, and is then scaled to
    an RMS of 0.2; AdamW for embedding, head, routers and vectors. Li et al. 2025 (NorMuon, arXiv 2510.05491), algorithm
    1.

    v has no bias correction, which the scaling cancels in part.
    """

    name: Literal["normuon"] = "normuon"
    row_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of v, one number for each row of a matrix. Default of the authors."""

    def for_matrices(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        import pytorch_optimizer

        return pytorch_optimizer.NorMuon(
            [group | {"use_muon": True} for group in groups],
            momentum=self.momentum,
            beta2=self.row_beta2,
            nesterov=self.nesterov,
            ns_steps=self.ns_steps,
            update_scale="match_rms",
            foreach=False,
        )
