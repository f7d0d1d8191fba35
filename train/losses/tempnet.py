"""TempNet: a small network predicts the softmax temperature of each token.

Shape suffixes: N tokens, V vocabulary, D model width, H hidden width of the network.
"""

import math
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED
from models.probes import Stats
from train.losses.base import INITIAL_WEIGHTS, LOSS, LossConfig, Objective, Output, at_target, seeded
from train.losses.fused import probabilities

# The eps of F.normalize.
EPS = 1e-12


class TempNet(nn.Module):
    """Maps logits to temperatures: two linear layers, a softmax-weighted sum of the units, and a sigmoid scaled to
    (tau_min, tau_max)."""

    def __init__(self, config: "TempNetLoss", vocab_size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.up = nn.Linear(vocab_size, config.width)
        self.across = nn.Linear(config.width, config.width)
        self.last = nn.Linear(config.width, 1)
        self.pool_log_temperature = nn.Parameter(torch.zeros(()))
        with torch.no_grad():
            for layer in (self.up, self.across):
                # nn.Linear's default initialization, drawn from the seeded generator.
                bound = 1 / math.sqrt(layer.in_features)
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)
            self.last.weight.fill_(1)
            self.last.bias.zero_()

    def forward(self, output: Output) -> torch.Tensor:
        """Returns the temperature tau of each token, [N]."""
        config, logits_NV = self.config, output.logits_NV.detach()
        norm_N1 = logits_NV.norm(dim=-1, keepdim=True).clamp_min(EPS)
        x_NH = torch.sigmoid(self.project(output) / norm_N1 + self.up.bias)
        if config.dropout:
            uniform_NH = torch.rand(x_NH.shape, generator=output.generator(), device=x_NH.device)
            x_NH = x_NH * (uniform_NH >= config.dropout) / (1 - config.dropout)
        x_NH = self.across(x_NH)
        weights_NH = torch.softmax(x_NH / self.pool_log_temperature.exp(), -1)
        pooled_N = self.last((weights_NH - 1 / config.width) * x_NH)[:, 0]
        return config.tau_min + (config.tau_max - config.tau_min) * torch.sigmoid(pooled_N)

    def project(self, output: Output) -> torch.Tensor:
        """Returns the first layer's product with the logits, [N, H]. No gradient flows into the logits."""
        logits_NV = output.logits_NV.detach()
        if self.config.soft_cap is not None:
            return F.linear(logits_NV, self.up.weight)
        # Without a cap, logits are hidden @ head^T: multiplying the weights first needs no product of size N x V x H.
        hidden_ND, head_VD = (x.detach().to(logits_NV.dtype) for x in (output.hidden_ND, output.head_VD))
        return hidden_ND @ (self.up.weight @ head_VD).T


class _Tempered(torch.autograd.Function):
    """Computes tau CE(z / tau), [N], with gradients p - onehot(target) for z and CE + (z_y - p.z) / tau for tau."""

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor, tau_N: torch.Tensor):
        scaled_NV = logits_NV / tau_N[:, None]
        p_NV, cross_entropy_N, *_ = probabilities(scaled_NV, targets_N)
        target_N, mean_N = at_target(scaled_NV, targets_N), scaled_NV.mul_(p_NV).sum(-1)
        ctx.save_for_backward(p_NV, targets_N, cross_entropy_N + target_N - mean_N)
        return tau_N * cross_entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: torch.Tensor):
        p_NV, targets_N, slope_N = ctx.saved_tensors
        # In place, as p is not needed again. Autograd raises an error on a second backward pass.
        grad_NV = p_NV.mul_(grad_N[:, None]).scatter_add_(1, targets_N[:, None], -grad_N[:, None])
        return grad_NV, None, grad_N * slope_N


def tempered(logits_NV: torch.Tensor, targets_N: torch.Tensor, tau_N: torch.Tensor, rho: float) -> torch.Tensor:
    """Returns tau CE(z / tau) + (rho - log V) tau of each token, [N]."""
    return _Tempered.apply(logits_NV, targets_N, tau_N) + tau_N * (rho - math.log(logits_NV.shape[-1]))


class TempNetObjective(Objective):
    config: "TempNetLoss"

    def __init__(self, config: "TempNetLoss", vocab_size: int, seed: int) -> None:
        super().__init__(config)
        generator = seeded(np.random.SeedSequence(seed, spawn_key=(INITIAL_WEIGHTS,)))
        self.temperature = TempNet(config, vocab_size, generator)

    def main(self, output: Output, targets_N: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        tau_N = self.temperature(output)
        loss_N = tempered(output.logits_NV, targets_N, tau_N, self.config.rho)
        return loss_N.mean(), {"output/temperature": tau_N.detach().mean()}


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TempNetLoss(LossConfig):
    """tau CE(z / tau) + (rho - log V) tau with tau from a network: the dual of a loss that is robust over a KL ball.

    Qiu et al. 2024 (arXiv 2404.04575), network and loss as in github.com/zhqiu/TempNet, GPT-2. The network reads the
    logits, normalized to length 1 and detached. Unlike in the paper, it has no optimizer of its own: the run's
    optimizer trains, clips and decays it with the model. Validation uses tau = 1. The optimal tau is above 0 only if
    rho < log V; for smaller vocabularies every tau falls to tau_min.
    """

    name: Literal["tempnet"] = "tempnet"
    reads_head = True
    shards = False  # a single number has no rows to share out
    rho: Annotated[float, Field(ge=0)] = 5.0
    """Radius of the KL ball in nats; larger values lower the temperature. Unconfirmed for language models: tune it."""
    tau_min: Annotated[float, Field(gt=0)] = 0.5
    """Lowest temperature. zhqiu/TempNet."""
    tau_max: Annotated[float, Field(gt=0)] = 5.0
    """Highest temperature. zhqiu/TempNet."""
    width: Annotated[int, Field(ge=1)] = 256
    """Hidden width of the network. zhqiu/TempNet."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Dropout rate of the hidden units in training. zhqiu/TempNet."""

    @model_validator(mode="after")
    def _temperatures_are_ordered(self) -> "TempNetLoss":
        if self.tau_min >= self.tau_max:
            raise ValueError(
                f"tau_min={self.tau_min:g} is not below tau_max={self.tau_max:g}: lower tau_min or raise tau_max"
            )
        return self

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return TempNetObjective(self, vocab_size, seed)
