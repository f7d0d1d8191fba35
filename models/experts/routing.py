"""Which experts a token uses and with which weights, and the losses that keep experts in use.

All of it is computed in fp32. A token's gates are zero for experts that it does not use.

Shape suffixes: B batch, T tokens of a sequence, N tokens, E experts.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from models.reductions import cumsum

NOISE_FLOOR = 1e-2
"""Least standard deviation of the noise of noisy top-k gating, as in davidmrau/mixture-of-experts."""


class Routing(NamedTuple):
    chosen_NE: torch.Tensor
    """Which experts a token uses, bool, before any is dropped."""
    gates_NE: torch.Tensor
    """Factors of the experts' outputs."""


def largest(scores_NE: torch.Tensor, k: int) -> torch.Tensor:
    """Marks the k largest scores of each token."""
    none_NE = torch.zeros_like(scores_NE, dtype=torch.bool)
    return none_NE.scatter(-1, scores_NE.topk(k, -1).indices, True)


def top_k(scores_NE: torch.Tensor, k: int, bias_E: torch.Tensor | None, logs_NE: torch.Tensor | None = None) -> Routing:
    """Chooses the k largest of scores + bias; the gates are the scores, divided by their sum if their logs are given.

    Of logs, as all chosen scores can round to 0.
    """
    chosen_NE = largest(scores_NE.detach() if bias_E is None else scores_NE.detach() + bias_E, k)
    if logs_NE is None:
        return Routing(chosen_NE, scores_NE * chosen_NE)
    return Routing(chosen_NE, logs_NE.masked_fill(~chosen_NE, -math.inf).softmax(-1))


def noisy_top_k(noisy_NE: torch.Tensor, k: int) -> Routing:
    """Chooses the k largest noisy logits; the gates are their softmax. Shazeer et al. 2017, eqs. 3-5."""
    chosen_NE = largest(noisy_NE.detach(), k)
    return Routing(chosen_NE, noisy_NE.masked_fill(~chosen_NE, -math.inf).softmax(-1))


def by_threshold(p_NE: torch.Tensor, threshold: float, k: int) -> Routing:
    """Chooses experts in descending order of p until their sum reaches the threshold, at least one and at most k."""
    sorted_NE, order_NE = p_NE.detach().sort(dim=-1, descending=True, stable=True)
    before_NE = cumsum(sorted_NE, -1) - sorted_NE
    taken_NE = before_NE < threshold
    taken_NE[:, 0], taken_NE[:, k:] = True, False
    chosen_NE = torch.zeros_like(taken_NE).scatter(-1, order_NE, taken_NE)
    return Routing(chosen_NE, p_NE * chosen_NE)


def affinity(y_NED: torch.Tensor, of: Literal["softplus", "norm"] = "softplus") -> torch.Tensor:
    """Returns mean_d softplus(y_d) of each expert's output, [N, E]; with of=norm, softplus(|y|).

    CompeteSMoE (arXiv 2505.13380) and its first version (arXiv 2402.02526), whose authors call the code of that version
    faulty: norm is our reading of it.
    """
    y_NED = y_NED.float()
    return F.softplus(y_NED.norm(dim=-1)) if of == "norm" else F.softplus(y_NED).mean(-1)


def within_capacity(chosen_BTE: torch.Tensor, capacity: int) -> torch.Tensor:
    """Keeps the first `capacity` tokens of each expert in each sequence.

    Later tokens never displace earlier ones, and sequences do not compete: the layer is causal and independent of the
    size of micro-batches.
    """
    return chosen_BTE & (chosen_BTE.cumsum(1) <= capacity)


def shares(chosen_NE: torch.Tensor) -> torch.Tensor:
    """Returns the experts' shares of all pairs of a token and an expert, which sum to one; zero without pairs."""
    return chosen_NE.float().sum(0) / chosen_NE.sum().clamp_min(1)


def balance_loss(chosen_NE: torch.Tensor, p_NE: torch.Tensor, size_E: torch.Tensor | None = None) -> torch.Tensor:
    """Returns E sum_e f_e P_e, f_e an expert's share and P_e its mean probability; 1 if both are uniform.

    Each summand is multiplied by the expert's size, if sizes are given.

    Fedus et al. 2021 (Switch Transformers, arXiv 2101.03961), eqs. 4-6, for k = 1. With shares of all k choices as in
    Dai et al. 2024 (DeepSeekMoE, arXiv 2401.06066), eqs. 12-14. The gradient flows through P alone.
    """
    product_E = shares(chosen_NE) * p_NE.mean(0)
    return p_NE.shape[-1] * (product_E if size_E is None else size_E * product_E).sum()


def z_loss(logits_NE: torch.Tensor) -> torch.Tensor:
    """Returns the mean over tokens of (log sum_e exp z_e)^2. Zoph et al. 2022 (ST-MoE, arXiv 2202.08906), eq. 5."""
    return logits_NE.logsumexp(-1).square().mean()


def squared_variation(total_E: torch.Tensor) -> torch.Tensor:
    """Returns variance / mean^2 over experts, the variance over E."""
    return total_E.var(correction=0) / total_E.mean().square()


def expected_load(clean_NE: torch.Tensor, noisy_NE: torch.Tensor, sigma_NE: torch.Tensor, k: int) -> torch.Tensor:
    """Returns each expert's expected number of tokens under fresh noise of its own. Shazeer et al. 2017, eqs. 8-10.

    An expert is chosen if its noisy logit exceeds the k-th largest of the others'. This is the (k+1)-th largest of all
    for those that were chosen, and the k-th largest for the rest. Needs k < E.
    """
    top_NK = noisy_NE.topk(k + 1, -1).values
    inside_N1, outside_N1 = top_NK[:, k:], top_NK[:, k - 1 : k]
    others_NE = torch.where(noisy_NE > inside_N1, inside_N1, outside_N1)
    return torch.special.ndtr((clean_NE - others_NE) / sigma_NE).sum(0)
