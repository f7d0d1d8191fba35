"""Cross-entropy over a part of the vocabulary: the largest logits, or a sample.

Shape suffixes: N tokens, V vocabulary, K largest logits.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED
from models.probes import Stats
from train.losses.base import LOSS, LossConfig, Objective, Output, at_target


def of_largest(logits_NV: torch.Tensor, targets_N: torch.Tensor, k: int) -> torch.Tensor:
    """Returns log sum_{v in Omega} exp(z_v) - z_y of each token, [N], Omega its k largest logits and the target."""
    top_NK, index_NK = logits_NV.topk(min(k, logits_NV.shape[1]), -1)
    target_N = at_target(logits_NV, targets_N)
    inside_N = (index_NK == targets_N[:, None]).any(-1)
    more_N = target_N.masked_fill(inside_N, -math.inf)
    return torch.cat([top_NK, more_N[:, None]], -1).logsumexp(-1) - target_N


class SparseSoftmaxObjective(Objective):
    config: "SparseSoftmax"

    def main(self, output: Output, targets_N: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        return of_largest(output.logits_NV, targets_N, self.config.k).mean(), {}


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SparseSoftmax(LossConfig):
    """log sum_{v in Omega} exp(z_v) - z_y, Omega the k largest logits and the target: the rest gets no gradient. Sun et
    al. 2021 (Sparse-softmax, arXiv 2112.12433).

    That the target joins Omega is our reading. The full log Z drifts, because nothing lowers small logits.
    """

    name: Literal["sparse_softmax"] = "sparse_softmax"
    k: Annotated[int, Field(ge=1)] = 10
    """Number of largest logits. From vocabulary size on, it is cross-entropy. The default is not confirmed."""

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return SparseSoftmaxObjective(self)


def of_sample(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, negative_V: torch.Tensor, correction: torch.Tensor | float
) -> torch.Tensor:
    """Returns log sum_v exp(z_v) - z_y of each token, [N], over all targets of the batch and the sampled negatives.

    `correction` is added to the logits of the negatives.
    """
    shift_V = (logits_NV.new_zeros(logits_NV.shape[1:]) + correction).masked_fill(~negative_V, -math.inf)
    shift_V = shift_V.index_fill(0, targets_N, 0.0)
    return (logits_NV + shift_V).logsumexp(-1) - at_target(logits_NV, targets_N)


class SampledObjective(Objective):
    config: "SampledSoftmax"

    def main(self, output: Output, targets_N: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        generator, logits_NV = output.generator(), output.logits_NV
        order_V = torch.rand(logits_NV.shape[1], generator=generator, device=logits_NV.device)
        order_V[targets_N] = math.inf  # after all others
        # The numbers of tokens stay on the device: the host would have to wait for them.
        others = order_V.isfinite().sum()
        exact = torch.float32 if others.device.type == "mps" else torch.float64  # which mps has not
        count = (self.config.share * others.to(exact)).ceil()
        correction = (others / count.clamp_min(1)).log() if self.config.corrected else 0.0
        first_V = order_V.argsort().argsort() < count
        return of_sample(logits_NV, targets_N, first_V, correction).mean(), {}


@LOSS.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class SampledSoftmax(LossConfig):
    """Cross-entropy over all targets of the micro-batch and a random share of the other tokens. An et al. 2022 (Partial
    FC, arXiv 2203.15565); the correction of sampled logits by -log of their share: Jean et al. 2015 (arXiv 1412.2007).

    It saves no time here: the head still computes all logits. `accumulate` and `devices` change which tokens count.
    """

    name: Literal["sampled_softmax"] = "sampled_softmax"
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the tokens that are no target of the micro-batch; 1 is cross-entropy. 0.1 in Partial FC."""
    corrected: bool = False
    """Subtract log(share) from sampled logits, which makes the sum over them unbiased. Partial FC does not."""

    def build(self, *, vocab_size: int, seed: int) -> Objective:
        return SampledObjective(self)
