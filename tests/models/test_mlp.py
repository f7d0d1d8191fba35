import math

import pytest
import torch
from torch import nn

from models.mlp import MLP
from tests.conftest import choice, randn

WIDTH = 24
DENSE = sorted(name for name in MLP.choices if name != "moe")  # Experts have tests of their own.


def mlp(name: str, **changes: float) -> nn.Module:
    torch.manual_seed(0)
    return choice(MLP, name, **changes).build(WIDTH)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """Hendrycks & Gimpel 2016, the tanh form that Flax takes by default."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def expected(name: str, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    up = x @ layer.up.weight.T
    match name:
        case "gelu":
            hidden = gelu_tanh(up)
        case "series":  # its second term starts at half the slope
            hidden = gelu_tanh(up) + gelu_tanh(up / 2)
        case "relu2":  # So et al. 2021
            hidden = up.clamp_min(0) ** 2
        case "swiglu":  # Shazeer 2020, eq. 6
            gate = x @ layer.gate.weight.T
            hidden = gate / (1 + torch.exp(-gate)) * up
        case "sglu":  # Qin et al. 2023
            hidden = (x @ layer.gate.weight.T) * up
    return hidden @ layer.down.weight.T


@pytest.mark.parametrize("name", DENSE)
def test_equation(name: str) -> None:
    layer, x = mlp(name), 3 * randn(2, 5, WIDTH)
    torch.testing.assert_close(layer(x), expected(name, layer, x), atol=1e-5, rtol=1e-5)


def test_gelu_is_not_the_exact_one() -> None:
    """The two differ by up to 5e-4, which a looser test would not see."""
    layer, x = mlp("gelu"), 3 * randn(2, 5, WIDTH)
    exact = torch.nn.functional.gelu(x @ layer.up.weight.T) @ layer.down.weight.T
    assert (layer(x) - exact).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("name", "count"),
    # 8 d^2 each; 8/3 d is 64 at this width: the gated layer has as many as the others (Shazeer 2020, section 3).
    [("gelu", 8 * WIDTH**2), ("relu2", 8 * WIDTH**2), ("swiglu", 3 * 64 * WIDTH), ("sglu", 3 * 64 * WIDTH)],
)
def test_parameter_count(name: str, count: int) -> None:
    assert sum(p.numel() for p in mlp(name).parameters()) == count == 8 * WIDTH**2


@pytest.mark.parametrize("name", DENSE)
def test_expand_is_hidden_width_over_model_width(name: str) -> None:
    layer = mlp(name, expand=2.5)
    assert layer.up.weight.shape == (60, WIDTH)
    assert layer.down.weight.shape == (WIDTH, 60)
    assert all(module.bias is None for module in layer.modules() if isinstance(module, nn.Linear))


@pytest.mark.parametrize("name", DENSE)
def test_tokens_do_not_interact(name: str) -> None:
    layer, x = mlp(name), randn(2, 5, WIDTH)
    torch.testing.assert_close(layer(x)[:, 3:4], layer(x[:, 3:4]), atol=1e-6, rtol=0)
