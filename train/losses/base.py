"""Base classes of losses. The objective is a main loss plus auxiliary terms; plain cross-entropy is what is reported.

A loss is one file in this folder: a frozen dataclass, its config, and an Objective that implements the main loss.
All losses are computed in fp32 and averaged over tokens.

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
    """The model's output on a micro-batch, with logits = hidden @ head^T, and the position in the run."""

    logits_NV: torch.Tensor
    hidden_ND: torch.Tensor
    head_VD: torch.Tensor
    progress: float
    """0 at the first step, 1 at the last."""
    key: tuple[int, ...]
    """(seed, step, micro-batch, rank)"""

    def generator(self) -> torch.Generator:
        """Returns a generator seeded by the key alone, so that a resumed run draws the same numbers."""
        return seeded(np.random.SeedSequence(self.key), self.logits_NV.device)


def seeded(key: np.random.SeedSequence, device: torch.device | None = None) -> torch.Generator:
    """Returns a generator seeded by the key."""
    return torch.Generator(device or "cpu").manual_seed(int(key.generate_state(1, np.uint64)[0]))


INITIAL_WEIGHTS = 1
"""Spawn key of the draws of a loss's initial weights, which share no numbers with those of the model or of steps."""


class Objective(nn.Module):
    """Base class of losses. Parameters of a loss are trained, probed and saved like those of the model."""

    in_fp32 = True
    """Whether the cross-entropy that it reports is computed from a softmax in fp32."""

    def __init__(self, config: "LossConfig") -> None:
        super().__init__()
        self.config = config

    def main(self, output: Output, targets_N: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        """Returns the main loss, a mean over tokens, and statistics for watch steps. Logits are fp32, soft-capped."""
        raise NotImplementedError

    def forward(self, output: Output, targets_N: torch.Tensor, watch: bool) -> tuple[torch.Tensor, Stats]:
        """Returns the scalar to minimise, and statistics.

        The statistics are the scalar as `train/objective`, the plain cross-entropy as `train/loss`, and more if `watch`
        is set.
        """
        uncapped_NV = output.logits_NV
        if self.config.soft_cap is not None:
            output = dataclasses.replace(output, logits_NV=self.soft_capped(uncapped_NV))
        loss, cross_entropy_N, log_z_N, max_N, main_stats = self.with_z_loss(output, targets_N)
        for term in self.auxiliary(output):
            loss = loss + term
        stats: Stats = {"train/loss": cross_entropy_N.mean(), "train/objective": loss.detach()}
        if watch:
            stats["output/logit_mean"] = output.logits_NV.detach().mean()
            stats["output/logit_max"] = max_N.max()
            stats["output/log_z"] = log_z_N.mean()
            stats["output/log_z_squared"] = log_z_N.square().mean()
            stats["output/zero_loss"] = stats["output/collapse"] = zero_share(cross_entropy_N)
            if not self.in_fp32:
                rounded_N = cross_entropy_z(output.logits_NV.detach(), targets_N, 0.0)[1]
                stats["output/collapse"] = zero_share(rounded_N)
            stats |= main_stats
            if self.config.soft_cap is not None:
                stats["output/uncapped_logit_max"] = uncapped_NV.detach().max()
        return loss, stats

    def with_z_loss(
        self, output: Output, targets_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Stats]:
        """Returns main loss plus z-loss; cross-entropy, log Z and largest logit, each [N]; statistics of the main loss.

        CrossEntropyObjective overrides this to share one softmax between the main loss and z-loss.
        """
        with full_precision(output.logits_NV):
            loss, main_stats = self.main(output, targets_N)
        logits_NV = output.logits_NV if self.config.z_loss else output.logits_NV.detach()
        z_loss_N, cross_entropy_N, log_z_N, max_N = cross_entropy_z(
            logits_NV, targets_N, self.config.z_loss, weight=0.0
        )
        if self.config.z_loss:
            loss = loss + z_loss_N.mean()
        return loss, cross_entropy_N, log_z_N, max_N, main_stats

    def auxiliary(self, output: Output) -> list[torch.Tensor]:
        """Returns the active auxiliary terms besides z-loss. LossConfig's fields give their equations."""
        config, terms = self.config, []
        if config.mu_loss:
            terms.append(config.mu_loss * output.head_VD.float().mean(0).square().sum())
        if config.max_z:
            terms.append(config.max_z * output.logits_NV.amax(-1).square().mean())
        if config.logit_penalty:
            terms.append(config.logit_penalty / 2 * output.logits_NV.square().sum(-1).mean())
        return terms

    def soft_capped(self, logits: torch.Tensor) -> torch.Tensor:
        """Returns c tanh(logits / c), or the logits themselves if soft_cap is null."""
        cap = self.config.soft_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def cross_entropy(self, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """Returns the loss that validation reports: plain cross-entropy of the soft-capped logits, for every choice."""
        return cross_entropy_z(self.soft_capped(logits_NV), targets_N, 0.0)[1].mean()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LossConfig(Choice):
    name: str
    reads_head = False  # whether it reads the head's rows besides the logits
    z_loss: Coefficient = 1e-4
    """Coefficient of log^2 Z; 0 turns it off. Wortsman et al. 2023, section 2.1."""
    mu_loss: Coefficient = 0.0
    """Coefficient of ||mean_v e_v||^2, the squared norm of the mean output embedding; 0 turns it off, 1e-4 in the
    experiments of github.com/flxst/output-embedding-centering."""
    max_z: Coefficient = 0.0
    """Coefficient of (max_v z_v)^2; 0 turns it off, 2e-4 in Baichuan 2 (arXiv 2309.10305; value unconfirmed)."""
    logit_penalty: Coefficient = 0.0
    """Coefficient beta of beta/2 ||z||^2, summed over the vocabulary; 0 turns it off, 2e-3 in
    github.com/ZhouYuxuanYX/Maximum-Suppression-Regularization."""
    soft_cap: Annotated[float, Field(gt=0)] | None = None
    """Soft-cap c of the output logits, z <- c tanh(z / c), in training and validation; null turns it off, 30 in Gemma 2
    (arXiv 2408.00118; value unconfirmed)."""

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        """Builds the loss. `seed` initializes its parameters, if it has any."""
        raise NotImplementedError


LOSS: Axis[LossConfig] = Axis("loss")


def zero_share(x_N: torch.Tensor) -> torch.Tensor:
    """Returns the share of exact zeros."""
    return (x_N == 0).float().mean()


def at_target(values_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Returns the value at each token's target, [N]."""
    return values_NV.gather(1, targets_N[:, None])[:, 0]
