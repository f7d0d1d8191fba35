"""Cross-entropy, the default, and its variants that penalize a large logit: label smoothing and MaxSup.

Shape suffixes: N tokens, V vocabulary.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.probes import Stats
from train.losses.base import LOSS, LossConfig, Objective, Output
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


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class CrossEntropy(LossConfig):
    """-log p_y with p = softmax(z). Wortsman et al. 2023, section 2.1."""

    name: Literal["cross_entropy"] = "cross_entropy"

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return CrossEntropyObjective(self)


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
