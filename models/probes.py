"""Probes: exact fp32 statistics of tensors inside the model. They stay on the device.

Stats maps metric names to tensors; per-head statistics have shape [H]. The suffix of the name says how micro-batches
and ranks are combined: `max` by the maximum, `min` by the minimum, `rms` by the root of the mean square, anything else
by the mean. The exception are statistics of the largest logit: they are taken from the micro-batch that has it.
Shape suffixes: B batch, H heads, T tokens (rows: queries i, columns: keys j), K head dimension, D model width, V
vocabulary, C channels, each with a decay of its own, N rows or columns of a square matrix.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

from models.reductions import cumsum, full_precision, lower_median

Stats = dict[str, torch.Tensor]

OF_MAX_PAIR = "cosine_of_max_pair"

SINK_ROWS, SINK_THRESHOLD = 64, 0.3
"""T and epsilon of the sink rate: Gu et al. 2024, section 3.2."""
LOCAL = range(4)
"""The N of `local_focus_N`, the distance from query back to key. As in Xue et al. 2025."""
ZERO_ROWS_OF_LOCAL = [f"zero_rows_{back}" for back in LOCAL]
OVER_ROWS = dict.fromkeys(("entropy", "top_weight", "support", "sink_mass"), "zero_rows")
OVER_ROWS |= {f"local_focus_{back}": zero for back, zero in zip(LOCAL, ZERO_ROWS_OF_LOCAL, strict=True)}
"""Metric -> the metric with the share of all-zero rows, which `over_rows` excludes from its mean."""

TINY = torch.finfo(torch.float32).tiny
SMALL = 1e-15
"""Vectors whose largest element is below this are divided by it first: squares and sums of them could underflow."""

# Largest block of logits held in memory at once, in elements (64 MiB in fp32).
SCORES_AT_ONCE = 2**24


def is_max(name: str) -> bool:
    return name.endswith(("max", "bound"))


def is_min(name: str) -> bool:
    return name.endswith("min")


def is_rms(name: str) -> bool:
    return name.endswith("rms")


def merge(into: Stats, new: Stats, weight: float) -> None:
    """Adds one of several equally sized micro-batches, whose share of the batch is `weight`."""
    before = dict(into)
    for name, value in new.items():
        old = before.get(name)
        if name.endswith(OF_MAX_PAIR):
            top = name.replace(OF_MAX_PAIR, "logit_max")
            into[name] = value if old is None else torch.where(new[top] > before[top], value, old)
        elif is_max(name):
            into[name] = value if old is None else torch.maximum(old, value)
        elif is_min(name):
            into[name] = value if old is None else torch.minimum(old, value)
        elif is_rms(name):
            into[name] = value * math.sqrt(weight) if old is None else (old.square() + value.square() * weight).sqrt()
        else:
            into[name] = value * weight if old is None else old + value * weight


def causal_logits(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float, bias_HTT: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns scale q k^T + bias in fp32, even under autocast: [B, H, T, T], -inf above the diagonal."""
    return causal(scaled_products(q_BHTK, k_BHTK, scale), bias_HTT)


def scaled_products(q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float) -> torch.Tensor:
    """Returns scale q k^T in fp32, even under autocast: [B, H, T, T], without a causal mask."""
    with full_precision(q_BHTK):
        return (q_BHTK.float() @ k_BHTK.float().mT) * scale


def causal(z_BHTT: torch.Tensor, bias_HTT: torch.Tensor | None = None) -> torch.Tensor:
    """Returns z + bias with -inf above the diagonal."""
    if bias_HTT is not None:
        z_BHTT = z_BHTT + bias_HTT
    length = z_BHTT.shape[-1]
    future_TT = torch.ones(length, length, dtype=torch.bool, device=z_BHTT.device).triu(1)
    return z_BHTT.masked_fill(future_TT, -math.inf)


def weight_entropy(weights_BHTT: torch.Tensor) -> torch.Tensor:
    """Returns the entropy -sum_j p log p of p = |w| / sum |w|, [B, H, T] in nats; 0 for an all-zero row."""
    return torch.special.entr(shares(weights_BHTT)).sum(-1)


def shares(x: torch.Tensor) -> torch.Tensor:
    """Returns |x| / sum |x| over the last dimension, in fp32 and of any scale down to denormals; 0 where all are 0."""
    x = x.float().abs()
    # In place here and below: allocating memory of this size takes longer than the arithmetic.
    x.div_(_scale(x.amax(-1, keepdim=True)))
    total = x.sum(-1, keepdim=True)
    return x.div_(total.masked_fill_(total == 0, 1))


def _scale(largest: torch.Tensor) -> torch.Tensor:
    """Returns what to divide vectors by, given their largest elements: 1, so that nothing is rounded, unless small."""
    return torch.where((largest > 0) & (largest < SMALL), largest, 1.0)


def unit(x: torch.Tensor) -> torch.Tensor:
    """Returns x / |x| over the last dimension, in fp32 and of any scale down to denormals; 0 where x is 0."""
    x = x.float()
    x = x / _scale(x.abs().amax(-1, keepdim=True))
    norm = x.norm(dim=-1, keepdim=True)
    return x / norm.masked_fill(norm == 0, 1)


def fused_attention(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns causal softmax attention, [B, H, T, K], and the logsumexp of each row, [B, H, T], without a T x T matrix.

    torch exposes the logsumexp only through its kernels' own operators. These two accept fp32.
    """
    if q_BHTK.is_cuda:
        out_BHTK, lse_BHT, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q_BHTK, k_BHTK, v_BHTK, None, True, 0.0, True, scale=scale
        )
        return out_BHTK, lse_BHT[..., : q_BHTK.shape[-2]]
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_BHTK, k_BHTK, v_BHTK, 0.0, True, scale=scale)


def fused_entropy(q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float) -> torch.Tensor:
    """Returns the exact entropy of each row of causal softmax attention, [B, H, T] in nats, without a T x T matrix.

    Let lse be the row's logsumexp and A the attention output for V := K. Then sum_j p_ij z_ij = scale <q_i, A_i>, so
    H_i = lse_i - scale <q_i, A_i>. Both terms are as large as the logits, so the rounding error is about
    1e-7 max|z|: 1e-3 nats at logits of 1e4. Negative results are rounding error and are clamped to 0.
    """
    attended_BHTK, lse_BHT = fused_attention(q_BHTK, k_BHTK, k_BHTK, scale)
    return (lse_BHT - scale * (q_BHTK * attended_BHTK).sum(-1)).clamp_min(0)


def weight_stats(weights_BHTT: torch.Tensor) -> Stats:
    """Returns statistics of a layer's causal attention weights w, of any sign and scale; [H] in fp32 but `diversity`.

    Let p = |w| / sum_j |w|, as Gu et al. 2024 (arXiv 2410.10781) do for unnormalized weights. Means over all rows:

    entropy        -sum_j p log p, in nats
    top_weight     max_j p
    support        1 / sum_j p^2, the effective number of keys
    sink_mass      p_i1 (Sink of Xue et al. 2025, arXiv 2510.11602, section 4.4)
    local_focus_N  p_{i, i-N}, over rows with at least N earlier keys (their LocFoc_N)

    An all-zero row has no p and counts as 0 in these. `zero_rows` is the share of such rows and `zero_rows_N` their
    share among the rows of local_focus_N; `over_rows` uses both to exclude them from the means. The others:

    sink_rate      share of sequences whose mean of p_i1 over the first 64 rows, all-zero rows excluded, exceeds 0.3
                   (Gu et al. 2024, section 3.2, where T = 64; shorter sequences: over all rows)
    row_sum        sum_j w, signed, all-zero rows included
    zero_weights   share of exact zeros among weights of visible keys (softmax underflows to 0 at logits 103 below the
                   row's largest)
    diversity      standard deviation of p_ij over heads / H, mean over batch and i >= j, all-zero rows as zeros
                   (HeadDiv of Xue et al. 2025); one number
    """
    batch, heads, length, _ = weights_BHTT.shape
    visible = batch * length * (length + 1) / 2
    p_BHTT = shares(weights_BHTT)
    largest_BHT, first_BHT = p_BHTT.amax(-1), p_BHTT[..., 0]
    # NaN != 0, so rows of NaN are not counted as zeros and stay visible in the metrics.
    zero_BHT = (largest_BHT == 0).float()
    used_BH = (1 - zero_BHT[..., :SINK_ROWS]).sum(-1)
    sink_BH = first_BHT[..., :SINK_ROWS].sum(-1) / used_BH.clamp_min(1) > SINK_THRESHOLD
    spread_BTT = (p_BHTT - p_BHTT.mean(1, keepdim=True)).square_().mean(1).sqrt_()
    stats = {
        "entropy": 0 - p_BHTT.clamp_min(TINY).log_().mul_(p_BHTT).sum(-1).mean((0, 2)),
        "top_weight": largest_BHT.mean((0, 2)),
        "support": ((1 - zero_BHT) / (p_BHTT.norm(dim=-1).square() + zero_BHT)).mean((0, 2)),
        "sink_rate": sink_BH.float().mean(0),
        "sink_mass": first_BHT.mean((0, 2)),
        "row_sum": weights_BHTT.float().sum(-1).mean((0, 2)),
        "zero_rows": zero_BHT.mean((0, 2)),
        "zero_weights": 1 - torch.count_nonzero(weights_BHTT, dim=(0, 2, 3)) / visible,
        "diversity": spread_BTT.mean() * (2 * length / (length + 1)),
    }
    none_H = p_BHTT.new_zeros(heads)
    for back in LOCAL:
        some = back < length
        stats[f"local_focus_{back}"] = p_BHTT.diagonal(-back, -2, -1).mean((0, 2)) if some else none_H
        stats[f"zero_rows_{back}"] = zero_BHT[..., back:].mean((0, 2)) if some else none_H
    return stats


def over_rows(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the metrics row with the means of `weight_stats` taken over non-zero rows only; 0 if there are none.

    Must run on the host after all merging, because parts of a batch can differ in their number of such rows.
    """
    done = {}
    for name, value in row.items():
        layer, _, what = name.rpartition("/")
        if what in OVER_ROWS and f"{layer}/{OVER_ROWS[what]}" in row:
            zero = row[f"{layer}/{OVER_ROWS[what]}"]
            value = [v / (1 - z) if z < 1 else 0.0 for v, z in zip(value, zero, strict=True)]
        if what not in ZERO_ROWS_OF_LOCAL:
            done[name] = value
    return done


def attention_scores(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float, bias_HTT: torch.Tensor | None = None
) -> Stats:
    """Returns exact statistics of the scaled, causally visible logits, each [H], computed in chunks of queries.

    logit_max           maximum over batch and pairs
    q_norm, k_norm      mean L2 norm of q and k over batch and tokens, after norm and positions
    cosine_mean         mean of cos(q_i, k_j) over batch and visible pairs
    cosine_of_max_pair  cosine of the pair with the largest logit (Wortsman et al. 2023, Fig. E.1, factor logits into
                        norms and cosine)
    """
    batch, _, length, _ = q_BHTK.shape
    q_norm_BHT, k_norm_BHT = q_BHTK.norm(dim=-1), k_BHTK.norm(dim=-1)
    max_BHT = torch.cat([z_BHCT.amax(-1) for z_BHCT in _logit_chunks(q_BHTK, k_BHTK, scale, bias_HTT)], -1)
    max_HR = max_BHT.transpose(0, 1).flatten(1)
    q_at_HK, k_at_HK = _pair(q_BHTK, k_BHTK, scale, bias_HTT, max_HR.argmax(1))
    seen_BHTK = cumsum(unit(k_BHTK), -2)
    return {
        "logit_max": max_HR.amax(1),
        "q_norm": q_norm_BHT.mean((0, 2)),
        "k_norm": k_norm_BHT.mean((0, 2)),
        "cosine_mean": (unit(q_BHTK) * seen_BHTK).sum((0, 2, 3)) / (batch * length * (length + 1) / 2),
        OF_MAX_PAIR: (unit(q_at_HK) * unit(k_at_HK)).sum(-1),
    }


def _pair(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float, bias_HTT: torch.Tensor | None, row_H: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns, per head, the query of one row (numbered over the batch) and its key of largest logit, [H, K] each."""
    heads, length = q_BHTK.shape[1:3]
    head_H, sequence_H, query_H = torch.arange(heads, device=row_H.device), row_H // length, row_H % length
    q_HK, k_HTK = q_BHTK[sequence_H, head_H, query_H], k_BHTK[sequence_H, head_H]
    z_HT = (k_HTK @ q_HK[..., None])[..., 0] * scale
    if bias_HTT is not None:
        z_HT = z_HT + bias_HTT[head_H, query_H]
    future_HT = torch.arange(length, device=row_H.device) > query_H[:, None]
    return q_HK, k_HTK[head_H, z_HT.masked_fill(future_HT, -math.inf).argmax(1)]


@torch.no_grad()
def largest_logit(q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float) -> torch.Tensor:
    """Returns each head's largest scale <q_i, k_j>, j <= i, over the batch: fp32 [H], exact, in chunks of queries."""
    q_BHTK, k_BHTK = q_BHTK.detach().float(), k_BHTK.detach().float()
    with full_precision(q_BHTK):
        found = [z_BHCT.amax((0, 2, 3)) for z_BHCT in _logit_chunks(q_BHTK, k_BHTK, scale, None)]
    return torch.stack(found).amax(0)


def _logit_chunks(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float, bias_HTT: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    """Yields logits of C queries at a time over keys up to the last of them, [B, H, C, T], -inf above the diagonal."""
    batch, heads, length, _ = q_BHTK.shape
    chunk = max(1, min(length, SCORES_AT_ONCE // (batch * heads * length)))
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        z_BHCT = (q_BHTK[:, :, start:stop] @ k_BHTK[:, :, :stop].mT).mul_(scale)
        if bias_HTT is not None:
            z_BHCT += bias_HTT[:, start:stop, :stop]
        future_CT = torch.ones(stop - start, stop, dtype=torch.bool, device=z_BHCT.device).triu(start + 1)
        yield z_BHCT.masked_fill_(future_CT, -math.inf)


def spectral_norms(w_HKD: torch.Tensor) -> torch.Tensor:
    """Returns the largest singular value of each matrix, fp32 [H]; NaN where one is not finite."""
    w_HKD = w_HKD.detach().float()
    unit_H11 = w_HKD.abs().amax((1, 2), keepdim=True).clamp_min(TINY)  # Elements near 1e-30 have no squares in fp32.
    w_HKD = w_HKD / unit_H11
    with full_precision(w_HKD):
        return eigenvalues(w_HKD @ w_HKD.mT)[:, -1].sqrt() * unit_H11[:, 0, 0]


def eigenvalues(gram_NN: torch.Tensor) -> torch.Tensor:
    """Returns the eigenvalues of positive semi-definite matrices, [..., N] ascending; NaN where one is not finite."""
    # The solver raises an error for NaN, and torch 2.13 has none for MPS.
    finite = gram_NN.nan_to_num(0.0, 0.0, 0.0)
    finite = finite.cpu() if finite.device.type == "mps" else finite
    # It doesn't converge for some matrices with entries far below the rounding error of the largest.
    size_11 = finite.abs().amax((-2, -1), keepdim=True)
    finite = finite.masked_fill(finite.abs() < 1e-12 * size_11, 0)
    found_N = torch.linalg.eigvalsh(finite).to(gram_NN.device).clamp_min(0)
    return torch.where(gram_NN.isfinite().all(-1).all(-1)[..., None], found_N, math.nan)


def rms(x: torch.Tensor) -> torch.Tensor:
    """Returns the root mean square over all elements, an fp32 scalar."""
    x = x.detach().float()
    unit = x.abs().amax()  # Elements near 1e-30 have no squares in fp32.
    return (x / unit.clamp_min(TINY)).square().mean().sqrt() * unit


VARIANCE_SHARE, DIMENSION_TOKENS = 0.8, 64
"""Share of the variance that the effective dimension explains, and the tokens of a sequence that it is taken over."""


def effective_dimension(x_BTD: torch.Tensor) -> torch.Tensor:
    """Returns d(0.8), the least number of principal components with 80 % of a sequence's variance, fp32 [B].

    Variance over tokens; of longer sequences, 64 at equal distances are taken. 0 if all tokens are equal, NaN if one is
    not finite.
    """
    x_BTD, length = x_BTD.detach().float(), x_BTD.shape[1]
    if length > DIMENSION_TOKENS:
        x_BTD = x_BTD[:, torch.arange(DIMENSION_TOKENS, device=x_BTD.device) * length // DIMENSION_TOKENS]
    x_BTD = x_BTD - x_BTD.mean(1, keepdim=True)
    size_B11 = x_BTD.abs().amax((1, 2), keepdim=True)
    x_BTD /= size_B11.masked_fill_(size_B11 == 0, 1)
    with full_precision(x_BTD):
        gram_BNN = x_BTD @ x_BTD.mT if x_BTD.shape[1] < x_BTD.shape[2] else x_BTD.mT @ x_BTD
    explained_BN = cumsum(eigenvalues(gram_BNN).flip(-1), -1)
    total_B1 = explained_BN[:, -1:]
    needed_B = (explained_BN < VARIANCE_SHARE * total_B1).sum(-1) + (total_B1[:, 0] > 0)
    return torch.where(total_B1[:, 0].isnan(), math.nan, needed_B.float())


def stream_stats(x_BTD: torch.Tensor) -> Stats:
    """Returns statistics of the residual stream after a block, fp32 scalars.

    rms          root mean square
    kurtosis     mean_d (x - mean)^4 / (mean_d (x - mean)^2)^2 over the D features of a token, mean over tokens. 3 if no
                 basis is privileged, near D if one feature dominates (Elhage et al. 2023, "Privileged bases in the
                 Transformer residual stream"). Bondarenko et al. 2023 (arXiv 2306.12929) take it over all activations
                 of a sequence.
    massive_max  largest |x| / (lower) median |x| of a sequence, maximum over sequences, at most 1e30: more than half of
                 a stream may be exactly zero. Sun et al. 2024 (arXiv 2402.17762), section 2, call activations massive
                 if this is about 1,000 or more and |x| exceeds 100.
    mean_share   T |mean|^2 / sum_t |x_t|^2 of a sequence, mean over sequences (Lu 2026, "Mean mode screaming", arXiv
                 2605.06169)
    dimension    effective dimension of a sequence's tokens, mean over sequences
    diversity    Frobenius norm of a sequence's T x D matrix minus its mean over tokens, mean over sequences. Both from
                 Wang et al. 2023 (PanGu-pi, arXiv 2312.17276), whose argument is that features collapse with depth.
    """
    x_BTD = x_BTD.detach().float()
    centred_BTD = x_BTD - x_BTD.mean(-1, keepdim=True)
    centred_BTD /= _scale(centred_BTD.abs().amax(-1, keepdim=True))
    variance_BT1 = centred_BTD.square().mean(-1, keepdim=True)
    unit_BTD = centred_BTD * variance_BT1.masked_fill(variance_BT1 == 0, 1).rsqrt()
    size_BN = x_BTD.abs().flatten(1)
    largest_B = size_BN.amax(1)
    least_B = torch.maximum(lower_median(size_BN, 1), 1e-30 * largest_B)
    over_B = largest_B.masked_fill(largest_B == 0, 1)
    part_BTD = x_BTD / over_B[:, None, None]
    mean_B1D = part_BTD.mean(1, keepdim=True)
    square_B = part_BTD.square().sum((1, 2))
    share_B = x_BTD.shape[1] * mean_B1D.square().sum((1, 2)) / square_B.masked_fill(square_B == 0, 1)
    return {
        "rms": rms(x_BTD),
        "kurtosis": unit_BTD.square().square().mean(),
        "massive_max": (largest_B / least_B.masked_fill(largest_B == 0, 1)).amax(),
        "mean_share": share_B.mean(),
        "dimension": effective_dimension(x_BTD).mean(),
        "diversity": ((part_BTD - mean_B1D).flatten(1).norm(dim=-1) * over_B).mean(),
    }


SLOW = 0.999
"""Decays above this count as `slow`: a state that loses less than a thousandth per token."""


def state_stats(dt: torch.Tensor, log_decay_BTC: torch.Tensor, state: torch.Tensor, output: torch.Tensor) -> Stats:
    """Returns statistics of a selective state space h_t = exp(dt_t A) h_t-1 + ..., fp32 scalars.

    `dt` and `output` have any shape, `log_decay_BTC` is dt A and `state` the state after the last token.

    dt_max      largest step dt
    rate_max    largest |dt A|
    decay_min   smallest decay exp(dt A), that of the fastest forgetting
    decay_max   mean decay over a sequence's tokens, maximum over sequences and channels; below 1 if states are stable
    slow        share of decays above 0.999
    rms         root mean square of the state
    output_rms  root mean square of the output, before the gate
    """
    decay_BTC = log_decay_BTC.detach().float().exp()
    return {
        "dt_max": dt.detach().float().amax(),
        "rate_max": log_decay_BTC.detach().float().abs().amax(),
        "decay_min": decay_BTC.amin(),
        "decay_max": decay_BTC.mean(1).amax(),
        "slow": (decay_BTC > SLOW).float().mean(),
        "rms": rms(state),
        "output_rms": rms(output),
    }
