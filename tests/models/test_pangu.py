"""PanGu-pi: series informed activation and augmented shortcut. Values of the exact GELU, which tanh approximates."""

from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.mlp import GELU, Series, SwiGLU
from models.shortcut import AugmentedShortcut
from tests.conftest import randn, tiny
from train.run.module import ProxyModule


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((1.0, 1.0), (0.0, 0.0), [-0.091001, -0.308538, 0.0, 1.682689, 5.991901]),
        ((1.0, -0.5), (0.0, 0.5), [1.354289, 0.425761, 0.345731, 0.841345, 2.837295]),
    ],
)
def test_series(a: tuple[float, ...], b: tuple[float, ...], expected: list[float]) -> None:
    made = Series(1, 5, terms=2, gated=False)
    with torch.no_grad():
        made.a.copy_(torch.tensor(a)[:, None].expand(2, 5))
        made.b.copy_(torch.tensor(b)[:, None].expand(2, 5))
    found = made.activated(torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0]))
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("gated", "plain"), [(False, GELU), (True, SwiGLU)])
def test_one_term_is_the_plain_layer(gated: bool, plain: Any) -> None:
    x, series, other = randn(3, 4), Series(4, 6, terms=1, gated=gated), plain(4, 6)
    for name in ("gate", "up", "down") if gated else ("up", "down"):
        getattr(other, name).weight.data = getattr(series, name).weight.data
    torch.testing.assert_close(series(x), other(x))


def test_shortcut() -> None:
    made = AugmentedShortcut(2, 2)
    z = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]])
    with torch.no_grad():
        made.down.weight.copy_(torch.tensor([[1.0, -1.0]]))
        made.up.weight.copy_(torch.tensor([[0.5], [2.0]]))
    expected = torch.tensor([[-0.079328, -0.317311], [0.420672, 1.682689], [0.977250, 3.908999]])
    torch.testing.assert_close(made(z), expected, atol=2e-3, rtol=0)


def test_training_starts_from_the_plain_block() -> None:
    plain, proxy = ProxyModule(tiny()), ProxyModule(tiny("augmented_shortcut=4"))
    text = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(0))
    block: Any = proxy.model.blocks[0]
    assert block.shortcut.down.weight.shape == (4, 16)
    state = plain.model.state_dict()
    proxy.model.load_state_dict(state, strict=False)
    assert torch.equal(proxy.model(text[:, :-1])[0], plain.model(text[:, :-1])[0])
    proxy.step_loss(text, 0).backward()
    assert block.shortcut.up.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("other", ["dual_stream=dense", "reparametrization=sigma"])
def test_refusals(other: str) -> None:
    with pytest.raises(ConfigError, match=r"^augmented_shortcut=4 .*: use .* or augmented_shortcut=null$"):
        tiny("augmented_shortcut=4", other, "model.depth=2")
