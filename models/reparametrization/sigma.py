"""sigmaReparam: W = gamma / sigma(V) V, V the trained weight. Zhai et al. 2023, eq. 5; apple/ml-sigma-reparam.

sigma(V) is the spectral norm, v^T V u with v and u from power iteration, one step each time that V has changed; its
gradient flows through V alone. In the authors' code a forward pass in training takes that step and stores u. Here it
is taken where V changes, after the update: the same numbers, while the forward pass stays a function of the weights,
however often it is called (micro-batches, probes, two uses of the head). In evaluation a step is taken and not stored.

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
    """The left and the right vector after one step from the right one."""
    v_O = F.normalize(weight_OI @ u_I, dim=0)
    return v_O, F.normalize(weight_OI.T @ v_O, dim=0)


class SpectralScale(nn.Module):
    """gamma / sigma(V) V in fp32; gamma is one learned number a layer."""

    v: torch.Tensor
    u: torch.Tensor

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(()))
        self.register_buffer("v", torch.zeros(fan_out))
        self.register_buffer("u", torch.zeros(fan_in))

    @torch.no_grad()
    def start(self, weight_OI: torch.Tensor, gamma: float | None) -> None:
        """Exact vectors by SVD; gamma=None starts at the spectral norm, where W = V."""
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

    On all Linear layers, the head too, as the authors' conversion of a model does; the embedding is none. Their recipes
    differ in the norms around it: the vision one has none (here norm=none qk_norm=none), the speech one is post-norm.
    gamma is decayed like every gain here. V is decayed too, which leaves W alone: decay of gamma is to W what decay of
    the weight is without a reparametrization.
    """

    name: Literal["sigma"] = "sigma"
    divides = True
    gamma_init: Literal["one", "sigma"] = "one"
    """Initial gamma: one, as in the authors' JAX code, or the spectral norm, as in their PyTorch code, so that W starts
    as the init axis has it. With one the scale of an init only sets how far an update turns the weight."""

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
