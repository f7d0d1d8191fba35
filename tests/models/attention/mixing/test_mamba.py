"""Mamba."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.carry import Carry
from models.probes import state_stats
from models.reparametrization.base import linears
from tests.conftest import randn, tiny
from tests.models.attention.mixing.helpers import B, D
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
from tests.models.test_gpt import gpt, tokens

KNOBS = {"state": "8", "taps": "2"}
STEPS = [[0.744397, 1.241154], [0.341154, 0.913015], [1.387335, 0.644397]]


def of_two_channels() -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """Rates [[1, 2], [1, 2]] and D = [1, 0.5]; x = v, B = k, C = q of the fixture."""
    made = mixer("mamba", state=2)
    made.heads = 2
    made.rates.log_rate = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [1.0, 2.0]]).log())
    made.skip.weight = torch.nn.Parameter(torch.tensor([1.0, 0.5]))
    q, k, v = (x[0] for x in fixture())
    return made, [v, torch.tensor(STEPS)[None], k, q]


def test_scan_vector() -> None:
    """dt = softplus([[0.1, 0.9], [-0.9, 0.4], [1.1, -0.1]]), the steps before it with biases 0.1 and -0.1."""
    steps = F.softplus(torch.tensor([[0.1, 0.9], [-0.9, 0.4], [1.1, -0.1]]))
    torch.testing.assert_close(steps, torch.tensor(STEPS), atol=1e-6, rtol=0)
    made, (x, dt, b, c) = of_two_channels()
    h = made.states(x, dt, b)  # type: ignore[operator]
    expected = torch.tensor([[2.906840, 2.774671], [-0.644397, -0.392767]])
    torch.testing.assert_close(h[0, -1], expected, atol=2e-6, rtol=0)
    y = made.read(h, x, c)[0]  # type: ignore[operator]
    expected = torch.tensor([[1.744397, 0], [0.264614, 2.326031], [1.867831, -0.248370]])
    torch.testing.assert_close(y, expected, atol=2e-6, rtol=0)
    z = torch.tensor([[0.0, 1], [1, 0], [-1, 2]])
    expected = torch.tensor([[0, 0], [0.193448, 0], [-0.502337, -0.437527]])
    torch.testing.assert_close(y * F.silu(z), expected, atol=2e-6, rtol=0)


def test_hidden_attention_vector() -> None:
    made, (_, dt, b, c) = of_two_channels()
    w = made.weights(dt, b, c)[0] - torch.diag_embed(made.skip.weight.detach()[:, None].expand(2, 3))  # type: ignore[operator]
    expected = torch.tensor([
        [[0.744397, 0, 0], [0.264614, 0.682308, 0], [-0.132169, 0.021278, 0]],
        [[1.241154, 0, 0], [0.249045, 1.826031, 0], [-0.261487, 0.251630, 0]],
    ])  # fmt: skip
    torch.testing.assert_close(w, expected, atol=2e-6, rtol=0)


def test_state_vector() -> None:
    """Steps as above, rates 1 and 2: |dt A| is at most 2 x 1.387335."""
    made, (x, dt, b, c) = of_two_channels()
    h = made.states(x, dt, b)  # type: ignore[operator]
    log_decay = made.log_decay(dt).flatten(2)  # type: ignore[operator]
    found = state_stats(dt, log_decay, h[:, -1], made.read(h, x, c))  # type: ignore[operator]
    means = [sum(math.exp(-step[channel]) for step in STEPS) / 3 for channel in (0, 1)]
    assert means[0] > means[1]
    expected = {
        "dt_max": 1.387335, "rate_max": 2.774670, "decay_min": 0.062370, "decay_max": means[0], "slow": 0.0,
        "rms": 2.044384, "output_rms": 1.418558,
    }  # fmt: skip
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=2e-6, abs=1e-6)


@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_the_recurrence(length: int) -> None:
    made, x = mixer("mamba"), randn(1 if length > 1000 else B, length, D)
    u = F.silu(made.convolution(made.value(x)))
    dt = F.softplus(made.step(made.squeeze(u)) + made.rates.step_bias)
    b, c, state, outputs, decays = made.key(u), made.query(u), torch.zeros(len(x), 2 * D, 16), [], []
    for t in range(length):
        decays.append((-made.rates.log_rate.exp() * dt[:, t, :, None]).exp())
        state = decays[-1] * state
        state = state + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
        outputs.append((state * c[:, t, None]).sum(-1) + made.skip.weight * u[:, t])
    y = torch.stack(outputs, 1)
    torch.testing.assert_close(made(x, Carry()), made.out(y * F.silu(made.gate(x))), atol=1e-5, rtol=1e-4)
    assert_state_probed(made, x, dt, torch.stack(decays, 1).flatten(2), state, y)


@pytest.mark.parametrize(
    "overrides",
    [(f"parametrization={p}", f"init={i}") for p in ("standard", "mup", "u_mup", "completep")
     for i in ("normal", "orthogonal", "xavier")] + [("init=lsuv",)],
)  # fmt: skip
def test_the_matrix_of_steps_starts_alike_everywhere(overrides: tuple[str, ...]) -> None:
    """Uniform in +-rank^-1/2 = 1/2 after all factors: steps stay where softplus(bias) puts them."""
    words = ["attention=mamba", "model.width=64", "model.heads=4", *overrides]
    model = gpt(*words)
    tiny(*words).init.calibrate(model, tokens(4))
    for mixer_ in model.mixers():
        w = mixer_.step.multiplier * mixer_.step.matrix().detach()  # type: ignore[operator, union-attr]
        assert float(w.abs().max()) == pytest.approx(0.5, rel=0.02)
        assert float(w.std()) == pytest.approx(0.5 / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("reparametrization", ["sigma", "tvr", "weight_conditioning"])
def test_reparametrizations_leave_the_matrix_of_steps_alone(reparametrization: str) -> None:
    model = gpt("attention=mamba", f"reparametrization={reparametrization}")
    names = [name for name, _ in linears(model)]
    assert any(name.endswith("attention.squeeze") for name in names)
    assert not any(name.endswith("attention.step") for name in names)


def test_causal() -> None:
    assert_causal_at_any_length(mixer("mamba"))


def test_finite() -> None:
    assert_finite(mixer("mamba"))


def test_probes() -> None:
    assert_probed(mixer("mamba"))


def test_start() -> None:
    made = mixer("mamba")
    torch.testing.assert_close(made.rates.log_rate.exp(), torch.arange(1.0, 17).expand(2 * D, 16))
    assert made.step.in_features == 1
    assert made.step.weight.abs().max() <= 1
    assert not made.rates.decays


def test_refusals() -> None:
    assert_refuses("mamba")
