"""The reading of the Weight Compander, W = a arctan(V / b)."""

import math

import pytest
import torch

from models.gpt import GPT, initialize
from models.layers import Linear
from models.parametrization import scaling_of, tensors
from models.reparametrization.arctan import Arctan
from tests.conftest import randn, tiny


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (1.0, 1.0, [-1.325818, -0.785398, 0.0, 0.463648, 1.107149]),
        (0.5, 2.0, [-0.553574, -0.231824, 0.0, 0.122489, 0.392699]),
    ],
)
def test_vectors(a: float, b: float, expected: list[float]) -> None:
    made = Arctan()
    with torch.no_grad():
        made.log_a.fill_(math.log(a))
        made.log_b.fill_(math.log(b))
    v = torch.tensor([-4.0, -1.0, 0.0, 0.5, 2.0], requires_grad=True)
    w = made(v)
    torch.testing.assert_close(w.detach(), torch.tensor(expected), atol=1e-6, rtol=0)
    (slope,) = torch.autograd.grad(w.sum(), v)
    torch.testing.assert_close(slope, a * b / (b**2 + v.detach() ** 2))
    assert float(made(1e6 * randn(100)).detach().abs().max()) <= a * math.pi / 2


def test_in_a_model() -> None:
    """b is twice the RMS of the initial weights; small weights are multiplied by the gain. a and b don't decay."""
    config = tiny("reparametrization=arctan", "reparametrization.gain=3")
    model = GPT(config, vocab_size=32, context=8)
    initialize(model, config, 0)
    matrices = [m for m in model.modules() if isinstance(m, Linear)]
    mapped = [m for m in matrices if isinstance(m.map, Arctan)]
    assert len(mapped) == len(matrices) - 1
    for m in mapped:
        b = 2 * m.weight.square().mean().sqrt()
        torch.testing.assert_close(m.map.log_b.exp(), b)
        torch.testing.assert_close(m.matrix(), 3 * b * torch.arctan(m.weight / b))
    decays = {t.name: scaling_of(config.parametrization, t, config.model).decays for t in tensors(model)}
    assert {name.rpartition(".")[2] for name, decays_ in decays.items() if not decays_} == {"log_a", "log_b"}
