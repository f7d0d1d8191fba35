"""sigmaReparam: W = gamma / sigma(V) V, V the trained weight. Zhai et al. 2023, eq. 5; apple/ml-sigma-reparam.

sigma(V) is the spectral norm v^T V u. v and u come from power iteration, one step each time V changes. The gradient
flows through V only. The authors take that step and store u in each training forward pass. Here it is taken after the
update. This gives the same numbers, and the forward pass stays a function of the weights however often it runs
(micro-batches, probes, two uses of the head). Evaluation takes one more step without storing it.

Shape suffixes: O fan-out, I fan-in.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.probes import full_precision
from models.reparametrization.base import (
    REPARAMETRIZATION,
    Reparametrization,
    ReparametrizationConfig,
    linears,
)


def power_step(weight_OI: torch.Tensor, u_I: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs one step of power iteration from the right vector; returns the left and right vectors."""
    v_O = F.normalize(weight_OI @ u_I, dim=0)
    return v_O, F.normalize(weight_OI.T @ v_O, dim=0)


class SpectralScale(nn.Module):
    """Computes gamma / sigma(V) V in fp32; gamma is one learned number per layer."""

    v: torch.Tensor
    u: torch.Tensor

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(()))
        self.register_buffer("v", torch.zeros(fan_out))
        self.register_buffer("u", torch.zeros(fan_in))

    @torch.no_grad()
    def start(self, weight_OI: torch.Tensor, gamma: float | None) -> None:
        """Sets u and v exactly, by SVD. gamma=None starts gamma at the spectral norm, so that W = V."""
        left, values, right = torch.linalg.svd(weight_OI.float(), full_matrices=False)
        self.v.copy_(left[:, 0])
        self.u.copy_(right[0])
        self.gamma.fill_(values[0] if gamma is None else gamma)

    @torch.no_grad()
    def step(self, weight_OI: torch.Tensor) -> None:
        v_O, u_I = power_step(weight_OI, self.u)
        self.v.copy_(v_O)
        self.u.copy_(u_I)

    def forward(self, weight_OI: torch.Tensor) -> torch.Tensor:
        with full_precision(weight_OI):
            v_O, u_I = self.v, self.u
            if not self.training:
                with torch.no_grad():
                    v_O, u_I = power_step(weight_OI, u_I)
            sigma = v_O @ (weight_OI @ u_I)
            return weight_OI / sigma * self.gamma


class SigmaReparam(Reparametrization):
    def after_step(self, model: Any, step: int, lr: float) -> None:
        for _, linear in linears(model):
            assert isinstance(linear.map, SpectralScale)
            linear.map.step(linear.weight)


@REPARAMETRIZATION.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SigmaConfig(ReparametrizationConfig):
    """Every matrix is its trained weight divided by the spectral norm, times a learned number gamma. Zhai et al. 2023.

    Acts on all Linear layers, including the head but not the embedding, like the authors' model conversion. Their
    recipes differ in norms: none for vision (here norm=none qk_norm=none), post-norm for speech. gamma decays like
    every gain here. V decays too, which does not change W. Decay of gamma affects W as weight decay would without
    reparametrization.
    """

    name: Literal["sigma"] = "sigma"
    divides = True
    maps_head = True
    gamma_init: Literal["one", "sigma"] = "one"
    """Initial gamma. one: as in the authors' JAX code; the init's scale then sets only how far an update rotates the
    weight. sigma: the spectral norm, as in their PyTorch code, so that W starts at the initial weight."""

    def build(self, model: Any) -> Reparametrization:
        for _, linear in linears(model):
            linear.map = SpectralScale(linear.in_features, linear.out_features)
        return SigmaReparam()

    def start(self, model: Any) -> None:
        for _, linear in linears(model):
            assert isinstance(linear.map, SpectralScale)
            linear.map.start(linear.weight, 1.0 if self.gamma_init == "one" else None)

    def keeps_start(self) -> bool:
        return self.gamma_init == "sigma"
