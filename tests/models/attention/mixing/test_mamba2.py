"""Mamba-2."""

import pytest
import torch
import torch.nn.functional as F

from models.attention.linear_time import linear_attention
from models.carry import Carry
from tests.conftest import randn
from tests.models.attention.mixing.helpers import B, D, H
from tests.models.attention.mixing.linear_helpers import fixture
from tests.models.attention.mixing.replacement_helpers import (
    LENGTHS,
    assert_causal_at_any_length,
    assert_finite,
    assert_probed,
    assert_refuses,
    assert_state_probed,
    mixer,
)

KNOBS = {"state": "8", "taps": "2", "rope": "true"}


def four_tokens() -> tuple[torch.Tensor, ...]:
    q, k, v = (
        torch.cat([x, torch.tensor(more)[None, None, None]], 2)
        for x, more in zip(fixture(), ([2.0, 1], [0, -1], [-1, 1]), strict=True)
    )
    dt, log_decay = torch.tensor([[[0.5, 1, 0.25, 1]]]), torch.tensor([[[-0.1, -0.5, -1, -0.2]]])
    return q, k, dt[..., None] * v, log_decay


@pytest.mark.parametrize("chunk", [2, 3, 64])
def test_ssd_vector(chunk: int) -> None:
    q, k, v, log_decay = four_tokens()
    expected = torch.tensor([[0.5, 0], [0.151633, 2], [-0.111565, 0.367879], [2.410780, -1.312854]])
    torch.testing.assert_close(linear_attention(q, k, v, log_decay, chunk=chunk)[0, 0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("decayed", [False, True])
def test_heads_with_shared_keys_are_heads_with_equal_keys(decayed: bool) -> None:
    q, k = randn(2, 1, 45, 6, seed=1), randn(2, 1, 45, 6, seed=2)
    v, log_decay = randn(2, 3, 45, 4, seed=3), -randn(2, 3, 45, seed=4).abs() if decayed else None
    expected = linear_attention(q.repeat(1, 3, 1, 1), k.repeat(1, 3, 1, 1), v, log_decay, chunk=8)
    torch.testing.assert_close(linear_attention(q, k, v, log_decay, chunk=8), expected, atol=1e-5, rtol=1e-4)


def test_gate_then_norm() -> None:
    """y = [0.5, 2], z = [1, 0.5]: y silu(z) = [0.365529, 0.622459], normalized [0.716127, 1.219492]."""
    y = torch.tensor([0.5, 2.0]) * F.silu(torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(y, torch.tensor([0.365529, 0.622459]), atol=1e-6, rtol=0)
    norm = mixer("mamba2").norm
    expected = torch.tensor([0.716127, 1.219492]).repeat(D)
    torch.testing.assert_close(norm(y.repeat(D)), expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize("rope", [False, True])
class TestMamba2:
    @pytest.mark.parametrize("length", LENGTHS)
    def test_it_is_the_recurrence(self, rope: bool, length: int) -> None:
        """In chunks of 64 tokens."""
        made, x = mixer("mamba2", state=8, rope=rope), randn(1 if length > 1000 else B, length, D)
        c, b, u, dt = made.parts(x)
        state, outputs, decays = torch.zeros(len(x), 2 * H, 8, D // H), [], []
        for t in range(length):
            decays.append((-made.rates.log_rate.exp() * dt[:, :, t]).exp())
            state = decays[-1][..., None, None] * state
            state = state + dt[:, :, t, None, None] * b[:, :, t, :, None] * u[:, :, t, None]
            outputs.append((c[:, :, t, None] @ state)[..., 0, :] + made.skip.weight[:, None] * u[:, :, t])
        y = torch.stack(outputs, 1).flatten(2)
        expected = made.out(made.norm(y * F.silu(made.gate(x))))
        torch.testing.assert_close(made(x, Carry()), expected, atol=1e-5, rtol=1e-4)
        assert_state_probed(made, x, dt, torch.stack(decays, 1), state, y)

    def test_explicit_weights(self, rope: bool) -> None:
        made, x = mixer("mamba2", state=8, rope=rope), randn(B, 20, D)
        c, b, u, dt = made.parts(x)
        y = (made.weights(c, b, dt) @ u).transpose(1, 2).flatten(2)
        torch.testing.assert_close(
            made(x, Carry()), made.out(made.norm(y * F.silu(made.gate(x)))), atol=1e-5, rtol=1e-4
        )

    def test_causal(self, rope: bool) -> None:
        assert_causal_at_any_length(mixer("mamba2", rope=rope))


def test_finite() -> None:
    assert_finite(mixer("mamba2"))


def test_probes() -> None:
    assert_probed(mixer("mamba2"))


def test_the_convolution_is_over_values_keys_and_queries() -> None:
    made, x = mixer("mamba2", state=8), randn(B, 20, D)
    together = torch.cat([made.value(x), made.key(x), made.query(x)], -1)
    expected = F.silu(made.convolution(together))
    c, b, u, _ = made.parts(x)
    torch.testing.assert_close(torch.cat([u.transpose(1, 2).flatten(2), b[:, 0], c[:, 0]], -1), expected)


def test_start() -> None:
    made = mixer("mamba2")
    assert ((made.rates.log_rate.exp() >= 1) & (made.rates.log_rate.exp() <= 16)).all()
    step = F.softplus(made.rates.step_bias)
    assert ((step >= 1e-3 * 0.999) & (step <= 0.1 * 1.001)).all()
    assert (made.skip.weight == 1).all()
    assert not made.rates.decays
    assert not made.skip.decays


def test_refusals() -> None:
    assert_refuses("mamba2")
