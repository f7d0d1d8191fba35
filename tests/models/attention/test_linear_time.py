"""The linear-time paths against the recurrences that they stand for, step by step in float64."""

import pytest
import torch

from models.attention.linear_time import delta_rule, delta_weights, linear_attention, scan, slot_attention, weights
from tests.conftest import randn

B, H, F, V = 2, 2, 3, 5
# One token; fewer than a chunk; whole chunks; not a multiple of the chunk.
LENGTHS = [1, 7, 32, 45]


def draws(length: int, strength: float = 1.0) -> dict[str, torch.Tensor]:
    """Queries, keys, values and decays; log decays are down to about -3 `strength`."""
    q, k = (randn(B, H, length, F, seed=s, dtype=torch.float64) for s in (1, 2))
    v = randn(B, H, length, V, seed=3, dtype=torch.float64)
    by_feature = -strength * randn(B, H, length, F, seed=4, dtype=torch.float64).abs()
    return {"q": q, "k": k, "v": v, "none": torch.zeros(()), "token": by_feature[..., 0], "feature": by_feature}


def recurrence(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor | None) -> torch.Tensor:
    state, out = torch.zeros(B, H, F, V, dtype=torch.float64), []
    for t in range(q.shape[2]):
        if log_decay is not None:
            state = state * log_decay[:, :, t].exp().reshape(B, H, -1, 1)
        state = state + k[:, :, t, :, None] * v[:, :, t, None]
        out.append((q[:, :, t, None] @ state)[..., 0, :])
    return torch.stack(out, 2)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("chunk", [4, 16])
@pytest.mark.parametrize("kind", ["none", "token", "feature"])
class TestLinearAttention:
    def test_both_paths_are_the_recurrence(self, length: int, chunk: int, kind: str) -> None:
        d = draws(length)
        decay = None if kind == "none" else d[kind]
        expected = recurrence(d["q"], d["k"], d["v"], decay)
        torch.testing.assert_close(linear_attention(d["q"], d["k"], d["v"], decay, chunk=chunk), expected)
        torch.testing.assert_close(weights(d["q"], d["k"], decay) @ d["v"], expected)

    def test_gradients(self, length: int, chunk: int, kind: str) -> None:
        d = draws(length)
        leaves = [d[n].requires_grad_() for n in ("q", "k", "v", *(() if kind == "none" else (kind,)))]
        outputs = [linear_attention(*leaves, chunk=chunk), recurrence(*[*leaves, None][:4])]
        fast, expected = (torch.autograd.grad(y.sin().sum(), leaves) for y in outputs)
        for one, other in zip(fast, expected, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["token", "feature"])
def test_any_strength_of_decay_is_exact(kind: str) -> None:
    """Of up to 3,000 nats a token; exp(c_i) exp(-c_j) would overflow even in float64."""
    d = draws(45, strength=1000.0)
    d[kind][:, :, ::3] = 0.0
    leaves = [d[n].requires_grad_() for n in ("q", "k", "v", kind)]
    outputs = linear_attention(*leaves), recurrence(*leaves)
    torch.testing.assert_close(*outputs)
    fast, expected = (torch.autograd.grad(y.sin().sum(), leaves) for y in outputs)
    for one, other in zip(fast, expected, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("length", [*LENGTHS, pytest.param(4096, marks=pytest.mark.slow)])
@pytest.mark.parametrize("chunk", [4, 16])
@pytest.mark.parametrize("gated", [False, True])
def test_the_delta_rule_is_its_recurrence(length: int, chunk: int, gated: bool) -> None:
    d = draws(length)
    q, v, k = d["q"], d["v"], torch.nn.functional.normalize(d["k"], dim=-1)
    beta = torch.sigmoid(randn(B, H, length, seed=5, dtype=torch.float64))
    decay = d["token"] if gated else None
    state, expected = torch.zeros(B, H, F, V, dtype=torch.float64), []
    for t in range(length):
        if decay is not None:
            state = state * decay[:, :, t, None, None].exp()
        k_t, error = k[:, :, t, :, None], v[:, :, t, None] - k[:, :, t, None] @ state
        state = state + beta[:, :, t, None, None] * k_t @ error
        expected.append((q[:, :, t, None] @ state)[..., 0, :])
    torch.testing.assert_close(delta_rule(q, k, v, beta, decay, chunk=chunk), torch.stack(expected, 2))
    if length <= max(LENGTHS):
        torch.testing.assert_close(delta_weights(q, k, beta, decay) @ v, torch.stack(expected, 2))


def test_expanded_features_and_their_kernel() -> None:
    """(q k)^2 is the product of all products of two features."""
    d = draws(45)

    def pairs(x: torch.Tensor) -> torch.Tensor:
        return (x[..., :, None] * x[..., None, :]).flatten(-2)

    found = linear_attention(d["q"], d["k"], d["v"], chunk=8, expand=pairs, kernel=torch.square)
    torch.testing.assert_close(found, (d["q"] @ d["k"].mT).square().tril() @ d["v"])


@pytest.mark.parametrize("kind", ["none", "token", "feature"])
def test_4096_tokens(kind: str) -> None:
    d = draws(4096, strength=0.01)
    decay = None if kind == "none" else d[kind]
    q, k, v = d["q"], d["k"], d["v"]
    torch.testing.assert_close(linear_attention(q, k, v, decay), recurrence(q, k, v, decay))


@pytest.mark.parametrize("length", LENGTHS)
def test_slot_attention_decays_by_value(length: int) -> None:
    d = draws(length)
    decay = -randn(B, H, length, V, seed=6, dtype=torch.float64).abs()
    state, expected = torch.zeros(B, H, F, V, dtype=torch.float64), []
    for t in range(length):
        state = state * decay[:, :, t, None].exp() + d["k"][:, :, t, :, None] * d["v"][:, :, t, None]
        expected.append((d["q"][:, :, t, None] @ state)[..., 0, :])
    torch.testing.assert_close(slot_attention(d["q"], d["k"], d["v"], decay), torch.stack(expected, 2))


@pytest.mark.parametrize("length", LENGTHS)
def test_scan(length: int) -> None:
    decay = torch.rand(
        B, length, F, V, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    update = randn(B, length, F, V, seed=2, dtype=torch.float64).requires_grad_()
    state, expected = torch.zeros(B, F, V, dtype=torch.float64), []
    for t in range(length):
        state = state * decay[:, t] + update[:, t]
        expected.append(state)
    outputs = scan(decay, update), torch.stack(expected, 1)
    torch.testing.assert_close(*outputs)
    found, by_step = (torch.autograd.grad(y.sin().sum(), (decay, update), create_graph=True) for y in outputs)
    torch.testing.assert_close(found, by_step)
    # And twice, as products with the Hessian are.
    twice = [torch.autograd.grad(sum(g.square().sum() for g in of), (decay, update)) for of in (found, by_step)]
    torch.testing.assert_close(*twice)
