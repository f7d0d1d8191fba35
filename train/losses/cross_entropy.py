"""Cross-entropy, the default, and its variants that penalize a large logit: label smoothing and MaxSup.

Shape suffixes: N tokens, V vocabulary.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.probes import Stats
from train.losses.base import LOSS, LossConfig, Objective, Output, at_target
from train.losses.fused import cross_entropy_z


class CrossEntropyObjective(Objective):
    """Computes cross-entropy, z-loss and a penalty b (z_k - mean_v z_v) with a single softmax."""

    def penalty(self, output: Output, targets_N: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Returns b, and the penalized token k of each position, [N]."""
        return 0.0, targets_N

    def with_z_loss(
        self, output: Output, targets_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Stats]:
        penalty, penalized_N = self.penalty(output, targets_N)
        loss_N, cross_entropy_N, log_z_N, max_N = cross_entropy_z(
            output.logits_NV, targets_N, self.config.z_loss, penalty=penalty, penalized_N=penalized_N
        )
        return loss_N.mean(), cross_entropy_N, log_z_N, max_N, {}


class DoubleObjective(Objective):
    """Computes cross-entropy and z-loss as CrossEntropyObjective, from logits cast to fp64."""

    in_fp32 = False

    def with_z_loss(
        self, output: Output, targets_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Stats]:
        dtype = output.logits_NV.dtype
        loss_N, cross_entropy_N, log_z_N, max_N = cross_entropy_z(
            output.logits_NV.double(), targets_N, self.config.z_loss
        )
        return loss_N.mean().to(dtype), cross_entropy_N.to(dtype), log_z_N.to(dtype), max_N.to(dtype), {}


class ExactObjective(Objective):
    """Computes cross-entropy as log(1 + e^r), r = log sum_{v != y} exp(z_v) - z_y, and z-loss."""

    in_fp32 = False

    def with_z_loss(
        self, output: Output, targets_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, Stats]:
        logits_NV = output.logits_NV
        others_NV = logits_NV.scatter(1, targets_N[:, None], -torch.inf)
        # The gradient of softplus is e^r / (1 + e^r), that of the target's logit the same with a minus sign.
        cross_entropy_N = F.softplus(others_NV.logsumexp(-1) - at_target(logits_NV, targets_N))
        loss, log_z_N = cross_entropy_N.mean(), logits_NV.logsumexp(-1)
        if self.config.z_loss:
            loss = loss + self.config.z_loss * log_z_N.square().mean()
        return loss, cross_entropy_N.detach(), log_z_N.detach(), logits_NV.detach().amax(-1), {}


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CrossEntropy(LossConfig):
    """-log p_y with p = softmax(z). Wortsman et al. 2023, section 2.1."""

    name: Literal["cross_entropy"] = "cross_entropy"
    arithmetic: Literal["fp32", "fp64", "exact"] = "fp32"
    """How it is computed from fp32 logits. fp32: p_y rounds to 1 where the target's logit is 17 above all others; the
    loss and its gradient there are then exactly 0 (softmax collapse: Prieto et al. 2025, arXiv 2501.04697). fp64: the
    same with softmax in fp64, which rounds from 37 on. exact: the same function in fp32 as log(1 + sum_{v != y} exp(z_v
    - z_y)), which keeps all its digits down to 1e-38; this form is ours."""

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return {"fp32": CrossEntropyObjective, "fp64": DoubleObjective, "exact": ExactObjective}[self.arithmetic](self)


class LabelSmoothingObjective(CrossEntropyObjective):
    config: "LabelSmoothing"

    def penalty(self, output: Output, targets_N: torch.Tensor) -> tuple[float, torch.Tensor]:
        return self.config.eps, targets_N


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LabelSmoothing(LossConfig):
    """Cross-entropy + eps (z_y - mean_v z_v), which is cross-entropy with the targets (1 - eps) onehot + eps / V.

    Szegedy et al. 2016 (arXiv 1512.00567), section 7; as a logit penalty: MaxSup (Zhou et al. 2025, arXiv 2502.15798).
    """

    name: Literal["label_smoothing"] = "label_smoothing"
    eps: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability mass of the target that is spread evenly over the vocabulary. Szegedy et al. 2016."""

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return LabelSmoothingObjective(self)


class MaxSupObjective(CrossEntropyObjective):
    config: "MaxSup"

    def penalty(self, output: Output, targets_N: torch.Tensor) -> tuple[float, torch.Tensor]:
        config = self.config
        weight = config.lambda_start + (config.lambda_end - config.lambda_start) * output.progress
        return weight, output.logits_NV.argmax(-1)


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class MaxSup(LossConfig):
    """Cross-entropy + lambda (max_v z_v - mean_v z_v): label smoothing that lowers the largest logit, not the true one.

    Zhou et al. 2025 (arXiv 2502.15798). lambda rises linearly over the run, as in the authors' code,
    github.com/ZhouYuxuanYX/Maximum-Suppression-Regularization.
    """

    name: Literal["maxsup"] = "maxsup"
    lambda_start: Annotated[float, Field(ge=0)] = 0.1
    """lambda at the first step."""
    lambda_end: Annotated[float, Field(ge=0)] = 0.2
    """lambda at the last step."""

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return MaxSupObjective(self)
