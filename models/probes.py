"""Probes: exact fp32 statistics of tensors inside the model, as device tensors that nothing here brings to the host.

Stats is a dict from a metric's name to a tensor; statistics taken head by head are of shape [H]. Micro-batches and
ranks are combined by what the name ends in: `max` by the maximum, `rms` by the root of the mean square, all others by
the mean; but what belongs to the largest logit comes from the micro-batch that has it.
Shape suffixes: B batch, H heads, T tokens (rows: queries i, columns: keys j), K head dimension, V vocabulary.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F

Stats = dict[str, torch.Tensor]

OF_MAX_PAIR = "cosine_of_max_pair"

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


def attention_scores(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float, bias_HTT: torch.Tensor | None = None
) -> Stats:
    """Of the scaled, causally visible logits and of what makes them up; each [H], exact, in chunks of queries.

    logit_max: max over batch and pairs. q_norm, k_norm: mean L2 norm of q and k over batch and tokens, after norm and
    positions. cosine_mean: mean of cos(q_i, k_j) over batch and visible pairs. cosine_of_max_pair: the cosine of the
    pair that has the maximal logit (Wortsman et al. 2023, Fig. E.1 takes the logits apart into norms and cosine).
    """
    batch, heads, length, dim = q_BHTK.shape
    q_norm_BHT, k_norm_BHT = q_BHTK.norm(dim=-1), k_BHTK.norm(dim=-1)
    max_BHT, key_BHT = _row_max(q_BHTK, k_BHTK, scale, bias_HTT)
    max_HR, key_HR = max_BHT.transpose(0, 1).flatten(1), key_BHT.transpose(0, 1).flatten(1)
    row_H1 = max_HR.argmax(1, keepdim=True)
    key_row_H1 = row_H1 // length * length + key_HR.gather(1, row_H1)
    q_at_HK, k_at_HK = (
        x.transpose(0, 1).reshape(heads, batch * length, dim).gather(1, r[..., None].expand(-1, -1, dim))[:, 0]
        for x, r in ((q_BHTK, row_H1), (k_BHTK, key_row_H1))
    )
    unit_q_BHTK = q_BHTK / q_norm_BHT.clamp_min(1e-12)[..., None]
    seen_BHTK = (k_BHTK / k_norm_BHT.clamp_min(1e-12)[..., None]).cumsum(-2)
    return {
        "logit_max": max_HR.amax(1),
        "q_norm": q_norm_BHT.mean((0, 2)),
        "k_norm": k_norm_BHT.mean((0, 2)),
        "cosine_mean": (unit_q_BHTK * seen_BHTK).sum((0, 2, 3)) / (batch * length * (length + 1) / 2),
        OF_MAX_PAIR: F.cosine_similarity(q_at_HK, k_at_HK, dim=-1),
    }


def _row_max(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, scale: float, bias_HTT: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest logit of each query and the key that has it, [B, H, T] each."""
    found = [z_BHCT.max(-1) for z_BHCT in _logit_chunks(q_BHTK, k_BHTK, scale, bias_HTT)]
    return torch.cat([value for value, _ in found], -1), torch.cat([key for _, key in found], -1)


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


def tensor_rms(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Root mean square of each of the tensors, [len(tensors)] in fp32."""
    norms = torch.stack(torch._foreach_norm(tensors)).float()
    return norms / torch.tensor([math.sqrt(t.numel()) for t in tensors], device=norms.device)
