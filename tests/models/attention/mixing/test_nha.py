"""Native hybrid attention."""

from typing import cast

import pytest
import torch
import torch.nn.functional as F

from models.attention.mixing.base import Inputs
from models.attention.mixing.nha import NativeHybrid
from tests.conftest import randn
from tests.models.attention.mixing.helpers import D, H, K, T, build, inputs, qkv
from tests.models.attention.mixing.linear_helpers import fixture

KNOBS = {"slots": "4", "window": "2"}
# Slots are empty in contexts that a window holds.
MUP = ["attention.window=2"]
PARAMETERS = D * H * 64 + D


def rule(**changes: int | float) -> NativeHybrid:
    return cast(NativeHybrid, build("nha", **changes))


def token_by_token(made: NativeHybrid, given: Inputs, v: torch.Tensor) -> torch.Tensor:
    """The equations, with slots that are written one token at a time."""
    q, k, x, window, outputs = given.q_BHTK, given.k_BHTK, given.x_BTD, made.window, []
    assert x is not None
    f = made.slots(x).exp()
    slots = f.shape[-1]
    slot_k, slot_v = torch.zeros(len(q), H, K, slots), torch.zeros(len(q), H, slots, K)
    for t in range(q.shape[2]):
        if t >= window:
            j = t - window
            f_j, s_j = f[:, :, j], 1 - f[:, :, j]
            slot_k = slot_k * f_j[:, :, None] + F.silu(k)[:, :, j, :, None] * s_j[:, :, None]
            slot_v = slot_v * f_j[..., None] + s_j[..., None] * v[:, :, j, None]
        near = slice(max(0, t - window + 1), t + 1)
        of_slots = (F.silu(q)[:, :, t, None] @ slot_k)[..., 0, :]
        of_tokens = (q[:, :, t, None] @ k[:, :, near].mT)[..., 0, :]
        p = torch.softmax(made.scale * torch.cat([of_slots, of_tokens], -1), -1)
        mixed = p[..., None, :slots] @ slot_v + p[..., None, slots:] @ v[:, :, near]
        outputs.append(mixed[..., 0, :])
    return torch.stack(outputs, 2)


class TestNHA:
    @pytest.mark.parametrize(
        ("window", "expected"),
        [
            (1, [[0.503490, 0], [0.016475, 0.668972], [0.680695, -0.258906]]),
            (3, [[0.503490, 0], [0.188941, 0.545714], [0.451546, 0.186213]]),
        ],
    )
    def test_vectors(self, window: int, expected: list[list[float]], monkeypatch: pytest.MonkeyPatch) -> None:
        """Two slots with gate logits [[0, 2], [1, -1], [0, 0]], without silu."""
        monkeypatch.setattr("models.attention.mixing.nha.F.silu", lambda x: x)
        made, (q, k, v) = rule(heads=1, head_dim=2, scale=2**-0.5, slots=2, window=window), fixture()
        with torch.no_grad():
            made.slots.linear.weight.copy_(torch.eye(2))
        given = Inputs(q, k, None, torch.tensor([[[0.0, 2], [1, -1], [0, 0]]]))
        torch.testing.assert_close(made.mixed(given, v)[0, 0], torch.tensor(expected), atol=2e-6, rtol=0)
        torch.testing.assert_close((made.weights(given) @ v)[0, 0], torch.tensor(expected), atol=2e-6, rtol=0)

    @pytest.mark.parametrize("window", [1, 2, 5, 32])
    @pytest.mark.parametrize("length", [1, 12, 45])
    def test_it_is_the_recurrence(self, window: int, length: int) -> None:
        made = rule(slots=3, window=window)
        q, k, v = (randn(2, H, length, K, seed=s) for s in (1, 2, 3))
        given = Inputs(q, k, None, randn(2, length, D, seed=4))
        expected = token_by_token(made, given, v)
        torch.testing.assert_close(made.mixed(given, v), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(made.weights(given) @ v, expected, atol=1e-5, rtol=1e-4)

    def test_rows_sum_to_less_than_one(self) -> None:
        """What empty and partly written slots take."""
        (q, k, _), x = qkv(), inputs()
        sums = rule(window=4).weights(Inputs(q, k, None, x)).sum(-1)
        assert 0 < sums.min() < 1
        assert sums.max() < 1
        # At the first token 64 empty slots have logits of zero.
        z = (q[:, :, 0] * k[:, :, 0]).sum(-1) * K**-0.5
        torch.testing.assert_close(sums[:, :, 0], z.exp() / (z.exp() + 64))

    def test_gates(self) -> None:
        made, x = rule(), inputs()
        logits = (x @ made.slots.linear.weight.T).unflatten(-1, (H, 64)).transpose(1, 2)
        torch.testing.assert_close(made.slots(x), F.logsigmoid(logits) / 8)

    def test_finish(self) -> None:
        made, (_, _, v) = rule(), qkv()
        flat = F.silu(v).transpose(1, 2).flatten(2)
        normed = flat / (flat.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(made.finish(v), normed.unflatten(-1, (H, K)).transpose(1, 2), atol=1e-5, rtol=1e-4)
        assert made.finish(v).shape == (3, H, T, K)
