"""The LR that follows the weights: what a step does to a tensor, times max(RMS(weights), least). Any optimizer.

Wortsman et al. 2023, Fig. E.14; Shazeer & Stern 2018 (Adafactor), algorithm 4. Weight decay that doesn't follow the LR
is left as it is. Nothing here waits for the device.
"""

from collections.abc import Sequence

import torch

from models.parametrization import ParameterGroup
from train.optimizers import OptimizerConfig
from train.run.tensors import tensor_rms


class RelativeLR:
    """Of the tensors whose rule asks for it; the others are left alone."""

    def __init__(
        self, tensors: Sequence[torch.Tensor], groups: Sequence[ParameterGroup], optimizer: OptimizerConfig
    ) -> None:
        """A group for each of the tensors."""
        chosen = [i for i, group in enumerate(groups) if group.scaling.least_rms is not None]
        self.count, self.places = len(tensors), chosen
        self.tensors = [tensors[i] for i in chosen]
        self.least = [groups[i].scaling.least_rms for i in chosen]
        self.decay = [optimizer.fixed_decay(groups[i]) for i in chosen]
        self.before: list[torch.Tensor] = []
        self.scale: torch.Tensor | None = None

    @torch.no_grad()
    def start(self) -> None:
        """Before the optimizer's step."""
        if self.tensors:
            self.before = [t.detach().clone() for t in self.tensors]
            rms = tensor_rms(self.before)
            self.scale = torch.maximum(rms, torch.tensor(self.least, dtype=rms.dtype, device=rms.device))

    @torch.no_grad()
    def finish(self, schedule: float) -> None:
        """After it: w <- w_0 + scale (w - w_0 + d w_0) - d w_0, d the schedule times independent decay."""
        if self.scale is None:
            return
        for tensor, before, scale, decay in zip(self.tensors, self.before, self.scale, self.decay, strict=True):
            d = schedule * decay
            tensor.copy_(before * (1 + d * (scale - 1)) + scale * (tensor - before))
        self.before = []

    def factors(self) -> torch.Tensor | float:
        """Of each tensor's LR in the last step."""
        if self.scale is None:
            return 1.0
        factors = torch.ones(self.count, dtype=self.scale.dtype, device=self.scale.device)
        factors[self.places] = self.scale
        return factors
