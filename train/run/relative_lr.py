"""Relative learning rates: scales the update of a tensor by max(RMS(weights), floor), with any optimizer.

Wortsman et al. 2023, Fig. E.14; Shazeer & Stern 2018 (Adafactor), algorithm 4. Weight decay that is independent of the
LR is not scaled.
"""

from collections.abc import Sequence
from typing import Any

import torch

from models.parametrization import ParameterGroup
from train.optimizers import OptimizerConfig
from train.run.tensors import tensor_rms


class RelativeLR:
    """Rescales the updates of the tensors whose parametrization sets `least_rms`; leaves the others alone."""

    def __init__(
        self, tensors: Sequence[torch.Tensor], groups: Sequence[ParameterGroup], optimizer: OptimizerConfig
    ) -> None:
        """Expects one group per tensor, in the same order."""
        scaled = [i for i, group in enumerate(groups) if group.scaling.least_rms is not None]
        self.count, self.indices = len(tensors), scaled
        self.tensors = [tensors[i] for i in scaled]
        self.least = [groups[i].scaling.least_rms for i in scaled]
        self.decay = [optimizer.fixed_decay(groups[i]) for i in scaled]
        self.epsilons = [optimizer.epsilon(groups[i]) for i in scaled]
        self.config = optimizer
        self.before: list[torch.Tensor] = []
        self.scale: torch.Tensor | None = None

    @torch.no_grad()
    def start(self) -> None:
        """Keeps a copy of the weights and takes their RMS, before the optimizer's step."""
        if self.tensors:
            self.before = [t.detach().clone() for t in self.tensors]
            rms = tensor_rms(self.before)
            self.scale = torch.maximum(rms, torch.tensor(self.least, dtype=rms.dtype, device=rms.device))

    @torch.no_grad()
    def finish(self, schedule: float, optimizer: Any) -> None:
        """Rescales the update after the optimizer's step: w <- w_0 + scale (w - w_0 + d w_0) - d w_0.

        w_0 are the weights before the step; d is the schedule's factor times the LR-independent weight decay, divided
        by the factor by which the optimizer has lowered the tensor's LR in this step, if it does that.
        """
        if self.scale is None:
            return
        for tensor, before, scale, decay, eps in zip(
            self.tensors, self.before, self.scale, self.decay, self.epsilons, strict=True
        ):
            d = schedule * decay / self.config.lr_divisor(optimizer, tensor, eps)
            tensor.copy_(before * (1 + d * (scale - 1)) + scale * (tensor - before))
        self.before = []

    def factors(self) -> torch.Tensor | float:
        """Returns the factor on each tensor's LR in the last step, [tensors], or 1.0 if none is rescaled."""
        if self.scale is None:
            return 1.0
        factors = torch.ones(self.count, dtype=self.scale.dtype, device=self.scale.device)
        factors[self.indices] = self.scale
        return factors
