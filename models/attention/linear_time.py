"""Causal sums over past keys in time linear in T, which all linear mixers share.

    o_i = sum_j<=i sum_f q_if k_jf exp(c_if - c_jf) v_j

c is the running sum of the log decay: none, one number per token and head, or one per feature of the key. Tokens are
cut into chunks. Within a chunk the sum is explicit; across chunks it goes through the state S = sum_j k_j v_j^T, which
is handed on from chunk to chunk. Only exponentials of differences c_i - c_j <= 0 are taken, so decay of any strength
neither overflows nor divides by zero. exp(c_i) exp(-c_j) would, once |c| passes 88.

Everything runs in the dtype of its inputs; callers pass fp32 and turn autocast off.
Shape suffixes: B batch, H heads, N chunks, C tokens of a chunk, T tokens, F features of queries and keys, V features of
values; ... any leading dimensions.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from models.reductions import cumsum

CHUNK = 64
"""Tokens per chunk."""
FEATURE_CHUNK = 16
"""Tokens per chunk with a decay per feature, a power of two."""

Map = Callable[[torch.Tensor], torch.Tensor]


def linear_attention(
    q_BHTF: torch.Tensor,
    k_BHTF: torch.Tensor,
    v_BHTV: torch.Tensor,
    log_decay: torch.Tensor | None = None,
    *,
    chunk: int | None = None,
    expand: Map | None = None,
    kernel: Map | None = None,
) -> torch.Tensor:
    """Returns o, [B, H, T, V], with `log_decay` [B, H, T], [B, H, T, F] or None.

    Without a decay per feature, all heads can have the same queries and keys, [B, 1, T, F].

    A feature map that is large but whose products are cheap is given as `expand`, the map, and `kernel`, which turns
    q k^T into the products of features. It is then applied only where a state is needed.
    """
    length = q_BHTF.shape[-2]
    by_feature = log_decay is not None and log_decay.dim() == q_BHTF.dim()
    chunk = chunk or (FEATURE_CHUNK if by_feature else CHUNK)
    # With a decay per feature, blocks are halved, so their size stays a power of two.
    chunk = chunk if by_feature else min(chunk, length)
    q, k, v = (cut(x, chunk) for x in (q_BHTF, k_BHTF, v_BHTV))
    c = None if log_decay is None else cumsum(cut(log_decay if by_feature else log_decay[..., None], chunk), -2)
    out = products(q, k, c, kernel) @ v
    if q.shape[2] > 1:
        q, k = (q, k) if expand is None else (expand(q), expand(k))
        out = out + (by_features(q, k, v, c) if by_feature and c is not None else by_tokens(q, k, v, c))
    return out.flatten(2, 3)[..., :length, :]


def by_features(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Returns the part of o that comes from earlier chunks, with a decay per feature."""
    last = c[..., -1:, :]
    return (q * c.exp()) @ carried((k * (last - c).exp()).mT @ v, last.mT.exp())


def by_tokens(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
    """Returns the part of o that comes from earlier chunks, without a decay or with one per token.

    Decay multiplies values and outputs, which can be fewer than features. If all heads have one set of queries and
    keys, their values are features of a single head.
    """
    heads, features = v.shape[1], v.shape[-1]
    one = q.shape[1] == 1 and heads > 1

    def together(x: torch.Tensor) -> torch.Tensor:
        """Returns [B, H, N, C, V] as [B, 1, N, C, H V], if that is how q and k are."""
        return x.permute(0, 2, 3, 1, 4).flatten(3)[:, None] if one else x

    def apart(x: torch.Tensor) -> torch.Tensor:
        return x[:, 0].unflatten(-1, (heads, features)).permute(0, 3, 1, 2, 4) if one else x

    if c is None:
        return apart(q @ carried(k.mT @ together(v)))
    last = c[..., -1:, :]
    kept = together(last.exp().expand(-1, -1, -1, -1, features)) if one else last.exp()
    return apart(q @ carried(k.mT @ together(v * (last - c).exp()), kept)) * c.exp()


def slot_attention(
    q_BHTF: torch.Tensor, k_BHTF: torch.Tensor, v_BHTV: torch.Tensor, log_decay_BHTV: torch.Tensor
) -> torch.Tensor:
    """Returns o_iv = sum_j<=i q_i k_j exp(c_iv - c_jv) v_jv, [B, H, T, V]: linear attention with a decay per value."""
    length = q_BHTF.shape[-2]
    q, k, v, g = (cut(x, FEATURE_CHUNK) for x in (q_BHTF, k_BHTF, v_BHTV, log_decay_BHTV))
    c = cumsum(g, -2)
    scores, outputs, half = q @ k.mT, [(q * k).sum(-1, keepdim=True) * v], 1
    while half < FEATURE_CHUNK:
        # As in `by_halves`: the second half of each block of 2m tokens reads the first, relative to their border.
        early, late = ([x.unflatten(-2, (-1, 2, half))[..., i, :, :] for x in (v, c)] for i in (0, 1))
        border = early[1][..., -1:, :]
        blocks = scores.unflatten(-1, (-1, 2, half)).unflatten(-4, (-1, 2, half))[..., 1, :, :, 0, :]
        below = blocks.diagonal(0, -4, -2).movedim(-1, -3)
        read = (below @ (early[0] * (border - early[1]).exp())) * (late[1] - border).exp()
        outputs.append(F.pad(read, (0, 0, half, 0)).flatten(-3, -2))
        half *= 2
    out = sum(outputs[1:], outputs[0])
    if q.shape[2] > 1:
        out = out + by_tokens(q, k, v, c)
    return out.flatten(2, 3)[..., :length, :]


def weights(
    q_BHTF: torch.Tensor, k_BHTF: torch.Tensor, log_decay: torch.Tensor | None = None, kernel: Map | None = None
) -> torch.Tensor:
    """Returns the explicit T x T matrix whose product with the values `linear_attention` computes."""
    length = q_BHTF.shape[-2]
    if log_decay is None:
        return products(q_BHTF, k_BHTF, None, kernel)
    if log_decay.dim() < q_BHTF.dim():
        return products(q_BHTF, k_BHTF, cumsum(log_decay.double(), -1)[..., None], kernel)
    whole = 2 ** math.ceil(math.log2(length))
    q, k, g = (F.pad(x, (0, 0, 0, whole - length)) for x in (q_BHTF, k_BHTF, log_decay))
    return products(q, k, cumsum(g, -2))[..., :length, :length]


def products(q: torch.Tensor, k: torch.Tensor, c: torch.Tensor | None, kernel: Map | None = None) -> torch.Tensor:
    """Returns sum_f q_if k_jf exp(c_if - c_jf) for j <= i and zero elsewhere, [..., C, C]; c [..., C, 1 or F]."""
    if c is not None and c.shape[-1] > 1:
        return by_halves(q, k, c)
    scores = q @ k.mT
    if kernel is not None:
        scores = kernel(scores)
    return scores.tril() if c is None else scores * decays(c[..., 0]).to(scores.dtype)


def decays(c: torch.Tensor) -> torch.Tensor:
    """Returns exp(c_i - c_j) for j <= i and zero elsewhere, [..., C, C]."""
    size = c.shape[-1]
    future_CC = torch.ones(size, size, dtype=torch.bool, device=c.device).triu(1)
    # Masked before exp: above the diagonal the difference is positive, and inf * 0 would be NaN in the backward pass.
    return (c[..., :, None] - c[..., None, :]).masked_fill(future_CC, -math.inf).exp()


def by_halves(q: torch.Tensor, k: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Returns `products` with a decay per feature, for a number of tokens that is a power of two.

    A block of 2m tokens is the blocks of its two halves, zeros above, and below them the products of the second half's
    queries with the first half's keys. Both are taken relative to the last token of the first half: all exponents are
    sums of log decays, so none is positive.
    """
    done = (q * k).sum(-1)[..., None, None]
    half = 1
    while half < q.shape[-2]:
        # [..., blocks, 2, half, F]
        early, late = ([x.unflatten(-2, (-1, 2, half))[..., i, :, :] for x in (q, k, c)] for i in (0, 1))
        border = early[2][..., -1:, :]
        queries, keys = late[0] * (late[2] - border).exp(), early[1] * (border - early[2]).exp()
        # Multiplies of two vectors, one pair at a time, cost more than their elementwise product.
        below = (queries * keys).sum(-1, keepdim=True) if half == 1 else queries @ keys.mT
        first, second = done.unflatten(-3, (-1, 2)).unbind(-3)
        done = torch.cat([F.pad(first, (0, half)), torch.cat([below, second], -1)], -2)
        half *= 2
    return done[..., 0, :, :]


def cut(x_BHTF: torch.Tensor, chunk: int) -> torch.Tensor:
    """Cuts tokens into chunks, [B, H, N, C, F]; pads the last with zeros."""
    rest = -x_BHTF.shape[-2] % chunk
    padded = F.pad(x_BHTF, (0, 0, 0, rest)) if rest else x_BHTF
    return padded.unflatten(-2, (-1, chunk))


def carried(update_BHNFV: torch.Tensor, kept_BHNF1: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the state before each chunk: S_0 = 0, S_n+1 = kept_n S_n + update_n."""
    if kept_BHNF1 is None:
        return F.pad(cumsum(update_BHNFV[:, :, :-1], 2), (0, 0, 0, 0, 1, 0))
    states = [torch.zeros_like(update_BHNFV[:, :, 0])]
    for update_BHFV, kept_BHF1 in zip(update_BHNFV.unbind(2)[:-1], kept_BHNF1.unbind(2)[:-1], strict=True):
        states.append(torch.addcmul(update_BHFV, states[-1], kept_BHF1))
    return torch.stack(states, 2)


class _Scan(torch.autograd.Function):
    """h_t = a_t h_t-1 + u_t along dimension 1, or h_t = a_t h_t+1 + u_t if reversed.

    Autograd would store a tensor for every step. The gradient is itself a scan, so it can be differentiated too.
    """

    @staticmethod
    def forward(ctx, decay: torch.Tensor, update: torch.Tensor, reverse: bool) -> torch.Tensor:
        found = torch.empty_like(update)
        steps = range(update.shape[1])
        before = None
        for t in reversed(steps) if reverse else steps:
            if before is None:
                found[:, t] = update[:, t]
            else:
                torch.addcmul(update[:, t], decay[:, t], found[:, before], out=found[:, t])
            before = t
        ctx.reverse = reverse
        ctx.save_for_backward(decay, found)
        return found

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        decay, found = ctx.saved_tensors
        none = torch.zeros_like(found[:, :1])
        # decay_t leads from t - 1 to t, or from t + 1 if reversed; the gradient flows the other way.
        if ctx.reverse:
            onward, previous = torch.cat([none, decay[:, :-1]], 1), torch.cat([found[:, 1:], none], 1)
        else:
            onward, previous = torch.cat([decay[:, 1:], none], 1), torch.cat([none, found[:, :-1]], 1)
        of_update = _Scan.apply(onward, grad, not ctx.reverse)
        return of_update * previous, of_update, None


def scan(decay: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    """Returns h_t = decay_t h_t-1 + update_t for every element of [B, T, ...], token by token."""
    return _Scan.apply(decay, update, False)


def delta_rule(
    q_BHTF: torch.Tensor,
    k_BHTF: torch.Tensor,
    v_BHTV: torch.Tensor,
    beta_BHT: torch.Tensor,
    log_decay_BHT: torch.Tensor | None = None,
    *,
    chunk: int = CHUNK,
) -> torch.Tensor:
    """Returns o_t = S_t^T q_t, S_t = a_t S_t-1 + beta_t k_t (v_t - a_t S_t-1^T k_t)^T, [B, H, T, V], log decay log a.

    In a chunk the corrected values u solve (I + L) u = beta (v - what the state before the chunk recalls), with
    L_ij = beta_i exp(c_i - c_j) k_i k_j, j < i. Yang et al. 2024 (arXiv 2412.06464), section 3.3.
    """
    length = q_BHTF.shape[-2]
    chunk = min(chunk, length)
    q, k, v = (cut(x, chunk) for x in (q_BHTF, k_BHTF, v_BHTV))
    beta = cut(beta_BHT[..., None], chunk)
    c = None if log_decay_BHT is None else cumsum(cut(log_decay_BHT[..., None], chunk), -2)
    scores, system = products(q, k, c), beta * products(k, k, c)
    # The solver takes the diagonal as ones and reads only what is below it.
    both = beta * torch.cat([v, k if c is None else k * c.exp()], -1)
    values, recalls = solved(system, both).split([v.shape[-1], k.shape[-1]], -1)
    reads, last = (q, None) if c is None else (q * c.exp(), c[..., -1:, :])
    writes = k if c is None or last is None else k * (last - c).exp()
    state, outputs = torch.zeros_like(k[:, :, 0].mT @ v[:, :, 0]), []
    for n in range(q.shape[2]):
        new_BHCV = values[:, :, n] - recalls[:, :, n] @ state
        outputs.append(reads[:, :, n] @ state + scores[:, :, n] @ new_BHCV)
        kept = state if last is None else state * last[:, :, n].exp()
        state = kept + writes[:, :, n].mT @ new_BHCV
    return torch.stack(outputs, 2).flatten(2, 3)[..., :length, :]


def delta_weights(
    q_BHTF: torch.Tensor, k_BHTF: torch.Tensor, beta_BHT: torch.Tensor, log_decay_BHT: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns the explicit T x T matrix whose product with the values `delta_rule` computes."""
    c = None if log_decay_BHT is None else cumsum(log_decay_BHT.double(), -1)[..., None]
    scores, system = products(q_BHTF, k_BHTF, c), beta_BHT[..., None] * products(k_BHTF, k_BHTF, c)
    return scores @ solved(system, torch.diag_embed(beta_BHT))


def solved(below: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solves (I + L) x = right for the part L of a matrix below its diagonal."""
    return torch.linalg.solve_triangular(below, right, upper=False, unitriangular=True)
