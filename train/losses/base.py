"""What a loss is: a main loss, auxiliary terms that go with any, and plain cross-entropy as what is reported.

A loss is one file in this folder: a frozen dataclass that names it and an Objective with its main loss. Everything is
in fp32 and a mean over tokens.

Shape suffixes: N tokens, V vocabulary, D model width.
"""

import dataclasses
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, Axis, Choice
from models.probes import Stats, full_precision
from train.losses.fused import cross_entropy_z

Coefficient = Annotated[float, Field(ge=0)]


@dataclasses.dataclass(frozen=True, eq=False)
class Output:
    """What a loss may use of a micro-batch: logits = hidden @ head^T, and where in the training it stands."""

    logits_NV: torch.Tensor
    hidden_ND: torch.Tensor
    head_VD: torch.Tensor
    progress: float
    """0 at the first step, 1 at the last."""
    key: tuple[int, ...]
    """Seed, step, micro-batch and rank."""

    def generator(self) -> torch.Generator:
        """Random numbers as a pure function of the key, so that a resumed run draws what an uncut one does."""
        seed = int(np.random.SeedSequence(self.key).generate_state(1, np.uint64)[0])
        return torch.Generator(self.logits_NV.device).manual_seed(seed)


class Objective(nn.Module):
    """Base of the losses. Parameters of a loss are trained, probed and saved like those of the model."""

    def __init__(self, config: "LossConfig") -> None:
        super().__init__()
        self.config = config

    def main(self, output: Output, targets_N: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        """The main loss of soft-capped logits in fp32, a mean over tokens, and statistics for watch steps."""
        raise NotImplementedError

    def forward(self, output: Output, targets_N: torch.Tensor, watch: bool) -> tuple[torch.Tensor, Stats]:
        """The scalar to minimise. Statistics: it as train/objective, cross-entropy as train/loss, more with `watch`."""
        uncapped_NV = output.logits_NV
        if self.config.soft_cap is not None:
            output = dataclasses.replace(output, logits_NV=self.soft_capped(uncapped_NV))
        loss, cross_entropy_N, log_z_N, max_N, found = self.with_z_loss(output, targets_N)
        for term in self.auxiliary(output):
            loss = loss + term
        stats: Stats = {"train/loss": cross_entropy_N.mean(), "train/objective": loss.detach()}
        if watch:
            stats["output/logit_mean"] = output.logits_NV.detach().mean()
            stats["output/logit_max"] = max_N.max()
            stats["output/log_z"] = log_z_N.mean()
            stats["output/log_z_squared"] = log_z_N.square().mean()
            stats |= found
            if self.config.soft_cap is not None:
                stats["output/uncapped_logit_max"] = uncapped_NV.detach().max()
        return loss, stats

    def with_z_loss(
        self, output: Output, targets_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Stats]:
        """The main loss with z-loss; cross-entropy, log Z and the largest logit of each token; statistics."""
        with full_precision(output.logits_NV):
            loss, found = self.main(output, targets_N)
        logits_NV = output.logits_NV if self.config.z_loss else output.logits_NV.detach()
        z_loss_N, *statistics = cross_entropy_z(logits_NV, targets_N, self.config.z_loss, weight=0.0)
        cross_entropy_N, log_z_N, max_N = statistics
        if self.config.z_loss:
            loss = loss + z_loss_N.mean()
        return loss, cross_entropy_N, log_z_N, max_N, found

    def auxiliary(self, output: Output) -> list[torch.Tensor]:
        """The terms besides z-loss that are on; their equations are with the fields of LossConfig."""
        config, terms = self.config, []
        if config.mu_loss:
            terms.append(config.mu_loss * output.head_VD.float().mean(0).square().sum())
        if config.max_z:
            terms.append(config.max_z * output.logits_NV.amax(-1).square().mean())
        if config.logit_penalty:
            terms.append(config.logit_penalty / 2 * output.logits_NV.square().sum(-1).mean())
        return terms

    def soft_capped(self, logits: torch.Tensor) -> torch.Tensor:
        cap = self.config.soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def cross_entropy(self, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """What validation reports: plain cross-entropy of the soft-capped logits, whatever is trained."""
        return cross_entropy_z(self.soft_capped(logits_NV), targets_N, 0.0)[1].mean()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LossConfig(Choice):
    name: str
    z_loss: Coefficient = 1e-4
    """Coefficient of log^2 Z; 0 turns it off. Wortsman et al. 2023, section 2.1."""
    mu_loss: Coefficient = 0.0
    """Coefficient of ||mean_v e_v||^2, the squared norm of the mean output embedding; 0 turns it off, 1e-4 in the
    experiments of github.com/flxst/output-embedding-centering."""
    max_z: Coefficient = 0.0
    """Coefficient of (max_v z_v)^2; 0 turns it off, 2e-4 in Baichuan 2 (arXiv 2309.10305; value unconfirmed)."""
    logit_penalty: Coefficient = 0.0
    """beta of beta/2 ||z||^2, a sum over the vocabulary; 0 turns it off, 2e-3 in
    github.com/ZhouYuxuanYX/Maximum-Suppression-Regularization."""
    soft_cap: Annotated[float, Field(gt=0)] | None = None
    """c of z <- c tanh(z / c) on the output logits, before any loss and in validation; null turns it off, 30 in Gemma 2
    (arXiv 2408.00118; value unconfirmed)."""

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        """The loss; `seed` is for its initial parameters, where it has any."""
        raise NotImplementedError


LOSS: Axis[LossConfig] = Axis("loss")


def at_target(values_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """The value of each token's target, [N]."""
    return values_NV.gather(1, targets_N[:, None])[:, 0]
