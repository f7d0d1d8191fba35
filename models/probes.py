"""Probes: exact fp32 statistics of tensors inside the model, as device tensors that nothing here brings to the host.

Stats is a dict from a metric's name to a tensor; statistics taken head by head are of shape [H]. Micro-batches and
ranks are combined by what the name ends in: `max` by the maximum, `rms` by the root of the mean square, all others by
the mean; but what belongs to the largest logit comes from the micro-batch that has it.
Shape suffixes: B batch, H heads, T tokens (rows: queries i, columns: keys j), K head dimension, V vocabulary.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

Stats = dict[str, torch.Tensor]

OF_MAX_PAIR = "cosine_of_max_pair"

SINK_ROWS, SINK_THRESHOLD = 64, 0.3
"""Of the sink rate: T and epsilon of Gu et al. 2024, section 3.2."""
LOCAL = range(4)
"""Keys counted back from the query's own whose weights `local_focus_N` are: those of Xue et al. 2025."""
ZERO_ROWS_OF_LOCAL = [f"zero_rows_{back}" for back in LOCAL]
OVER_ROWS = dict.fromkeys(("entropy", "top_weight", "support", "sink_mass"), "zero_rows")
OVER_ROWS |= {f"local_focus_{back}": zero for back, zero in zip(LOCAL, ZERO_ROWS_OF_LOCAL, strict=True)}
"""Means over rows with weight alone, and the share of rows without."""

TINY = torch.finfo(torch.float32).tiny

# Largest block of logits that is held at once, in elements (64 MiB of fp32).
SCORES_AT_ONCE = 2**24


def is_max(name: str) -> bool:
    return name.endswith("max")


def is_rms(name: str) -> bool:
    return name.endswith("rms")


def merge(into: Stats, new: Stats, weight: float) -> None:
    """Adds one of several equal micro-batches, of which each has the share `weight`."""
    before = dict(into)
    for name, value in new.items():
        old = before.get(name)
        if name.endswith(OF_MAX_PAIR):
            top = name.replace(OF_MAX_PAIR, "logit_max")
            into[name] = value if old is None else torch.where(new[top] > before[top], value, old)
        elif is_max(name):
            into[name] = value if old is None else torch.maximum(old, value)
        elif is_rms(name):
            into[name] = value * math.sqrt(weight) if old is None else (old.square() + value.square() * weight).sqrt()
        else:
            into[name] = value * weight if old is None else old + value * weight


def full_precision(x: torch.Tensor) -> torch.autocast:
    """Keeps autocast from taking the matrix products inside to bf16."""
    return torch.autocast(x.device.type, enabled=False)


def causal_logits(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float, bias_HTT: torch.Tensor | None = None
) -> torch.Tensor:
    """scale q k^T + bias in fp32, also under autocast, [B, H, T, T], -inf above the diagonal."""
    return causal(scaled_products(q_BHTK, k_BHTK, scale), bias_HTT)


def scaled_products(q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float) -> torch.Tensor:
    """scale q k^T in fp32, also under autocast, [B, H, T, T], of the future too."""
    with full_precision(q_BHTK):
        return (q_BHTK.float() @ k_BHTK.float().mT) * scale


def causal(z_BHTT: torch.Tensor, bias_HTT: torch.Tensor | None = None) -> torch.Tensor:
    """z + bias, -inf above the diagonal."""
    if bias_HTT is not None:
        z_BHTT = z_BHTT + bias_HTT
    length = z_BHTT.shape[-1]
    future_TT = torch.ones(length, length, dtype=torch.bool, device=z_BHTT.device).triu(1)
    return z_BHTT.masked_fill(future_TT, -math.inf)


def weight_entropy(weights_BHTT: torch.Tensor) -> torch.Tensor:
    """-sum_j p log p of p = |w| / sum |w|, [B, H, T] in nats; 0 for a row of zeros."""
    p_BHTT = weights_BHTT.float().abs()
    p_BHTT = p_BHTT / p_BHTT.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.special.entr(p_BHTT).sum(-1)


def fused_attention(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal softmax attention and the logsumexp of each row, without a T x T matrix: [B, H, T, K] and [B, H, T].

    torch gives the logsumexp only through its kernels' own operators; these are the two that take fp32.
    """
    if q_BHTK.is_cuda:
        out_BHTK, lse_BHT, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q_BHTK, k_BHTK, v_BHTK, None, True, 0.0, True, scale=scale
        )
        return out_BHTK, lse_BHT[..., : q_BHTK.shape[-2]]
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_BHTK, k_BHTK, v_BHTK, 0.0, True, scale=scale)


def fused_entropy(q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float) -> torch.Tensor:
    """Entropy of each row of causal softmax attention in nats, [B, H, T], exact and without a T x T matrix.

    With lse the row's logsumexp and A the attention output for V := K, sum_j p_ij z_ij = scale <q_i, A_i>, hence
    H_i = lse_i - scale <q_i, A_i>. Both terms are as large as the logits, so the rounding error is about
    1e-7 max|z|: 1e-3 nats at logits of 1e4. Below zero there is only this error; it is cut off.
    """
    attended_BHTK, lse_BHT = fused_attention(q_BHTK, k_BHTK, k_BHTK, scale)
    return (lse_BHT - scale * (q_BHTK * attended_BHTK).sum(-1)).clamp_min(0)


def weight_stats(weights_BHTT: torch.Tensor) -> Stats:
    """Of the attention weights w of a layer, causal and of any sign and size, each [H] in fp32 (diversity: one number).

    With p = |w| / sum_j |w| (Gu et al. 2024, arXiv 2410.10781, take the same for weights that aren't normalized) and
    means over the rows of the batch: `entropy` -sum_j p log p in nats; `top_weight` max_j p; `support` 1 / sum_j p^2,
    the number of keys that as many equal weights would have; `sink_mass` p_i1; `local_focus_N` p_{i, i-N} over the rows
    that have N keys before their own (Sink and LocFoc_N of Xue et al. 2025, arXiv 2510.11602, section 4.4).
    Rows of zeros have no p and count as 0 in these; `over_rows` takes them out of the means, by `zero_rows` and
    `zero_rows_N`, the shares of such rows, here and among those of local_focus_N.

    `sink_rate` share of the sequences in which the mean of p_i1 over the first 64 rows, those of zeros left out, is
    above 0.3 (Gu et al. 2024, section 3.2, with their T = 64; of shorter sequences all rows). `row_sum` sum_j w with
    its sign, rows of zeros included. `zero_weights` share of the weights of visible keys that are exactly zero (of
    softmax's, those whose exp underflows, 103 below the row's largest logit). `diversity` standard deviation of p_ij
    over heads, divided by H, a row of zeros being zeros, mean over batch and i >= j (HeadDiv of Xue et al. 2025).
    """
    batch, heads, length, _ = weights_BHTT.shape
    visible = batch * length * (length + 1) / 2
    p_BHTT = weights_BHTT.float().abs()
    # In place here and below: what takes time is less the arithmetic than fresh memory of this size.
    p_BHTT.div_(p_BHTT.sum(-1, keepdim=True).clamp_min(TINY))
    largest_BHT, first_BHT = p_BHTT.amax(-1), p_BHTT[..., 0]
    # A NaN is no zero: it stays to be seen in what is divided by the number of rows.
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
    """A metrics row in which `weight_stats` are means over the rows of a head that have weight; 0 where none has.

    On the host, behind all merging: the parts of a batch may have different numbers of such rows.
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
    """Of the scaled, causally visible logits and of what makes them up; each [H], exact, in chunks of queries.

    logit_max: max over batch and pairs. q_norm, k_norm: mean L2 norm of q and k over batch and tokens, after norm and
    positions. cosine_mean: mean of cos(q_i, k_j) over batch and visible pairs. cosine_of_max_pair: the cosine of the
    pair that has the maximal logit (Wortsman et al. 2023, Fig. E.1 takes the logits apart into norms and cosine).
    """
    batch, _, length, _ = q_BHTK.shape
    q_norm_BHT, k_norm_BHT = q_BHTK.norm(dim=-1), k_BHTK.norm(dim=-1)
    max_BHT = torch.cat([z_BHCT.amax(-1) for z_BHCT in _logit_chunks(q_BHTK, k_BHTK, scale, bias_HTT)], -1)
    max_HR = max_BHT.transpose(0, 1).flatten(1)
    q_at_HK, k_at_HK = _pair(q_BHTK, k_BHTK, scale, bias_HTT, max_HR.argmax(1))
    unit_q_BHTK = q_BHTK / q_norm_BHT.clamp_min(1e-12)[..., None]
    seen_BHTK = (k_BHTK / k_norm_BHT.clamp_min(1e-12)[..., None]).cumsum(-2)
    return {
        "logit_max": max_HR.amax(1),
        "q_norm": q_norm_BHT.mean((0, 2)),
        "k_norm": k_norm_BHT.mean((0, 2)),
        "cosine_mean": (unit_q_BHTK * seen_BHTK).sum((0, 2, 3)) / (batch * length * (length + 1) / 2),
        OF_MAX_PAIR: F.cosine_similarity(q_at_HK, k_at_HK, dim=-1),
    }


def _pair(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float, bias_HTT: torch.Tensor | None, row_H: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The query of one row a head, counted over the batch, and the visible key with the largest logit, [H, K] each."""
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
    """The largest scale <q_i, k_j>, j <= i, of each head over the batch, fp32 [H]: exact, in chunks of queries."""
    q_BHTK, k_BHTK = q_BHTK.detach().float(), k_BHTK.detach().float()
    with full_precision(q_BHTK):
        found = [z_BHCT.amax((0, 2, 3)) for z_BHCT in _logit_chunks(q_BHTK, k_BHTK, scale, None)]
    return torch.stack(found).amax(0)


def _logit_chunks(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float, bias_HTT: torch.Tensor | None
) -> Iterator[torch.Tensor]:
    """The logits in chunks of C queries and the keys up to the last of them, [B, H, C, T], -inf above the diagonal."""
    batch, heads, length, _ = q_BHTK.shape
    chunk = max(1, min(length, SCORES_AT_ONCE // (batch * heads * length)))
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        z_BHCT = (q_BHTK[:, :, start:stop] @ k_BHTK[:, :, :stop].mT).mul_(scale)
        if bias_HTT is not None:
            z_BHCT += bias_HTT[:, start:stop, :stop]
        future_CT = torch.ones(stop - start, stop, dtype=torch.bool, device=z_BHCT.device).triu(start + 1)
        yield z_BHCT.masked_fill_(future_CT, -math.inf)


def rms(x: torch.Tensor) -> torch.Tensor:
    """Root mean square over all elements, a scalar in fp32."""
    return x.detach().float().square().mean().sqrt()


def stream_stats(x_BTD: torch.Tensor) -> Stats:
    """Of the residual stream behind a block, scalars in fp32.

    `rms`. `kurtosis` mean_d (x - mean)^4 / (mean_d (x - mean)^2)^2 over the D features of a token, mean over tokens: 3
    where no basis is privileged, near D where one feature has all (Elhage et al. 2023, "Privileged bases in the
    Transformer residual stream"; Bondarenko et al. 2023, arXiv 2306.12929, take it over all activations of a sequence).
    `massive_max` the largest |x| over the median |x| of a sequence, maximum over sequences: Sun et al. 2024 (arXiv
    2402.17762), section 2, call activations massive from about 1,000 on, if also above 100. The lower median.
    """
    x_BTD = x_BTD.detach().float()
    centred_BTD = x_BTD - x_BTD.mean(-1, keepdim=True)
    unit_BTD = centred_BTD * centred_BTD.square().mean(-1, keepdim=True).clamp_min(TINY).rsqrt()
    size_BN = x_BTD.abs().flatten(1)
    return {
        "rms": rms(x_BTD),
        "kurtosis": unit_BTD.square().square().mean(),
        # 1e-30: a stream of which more than half is exactly zero has a large ratio, not an infinite one.
        "massive_max": (size_BN.amax(1) / size_BN.median(1).values.clamp_min(1e-30)).amax(),
    }
