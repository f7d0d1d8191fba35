"""Based."""

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs
from models.attention.mixing.based import taylor_features
from models.gpt import GPT
from tests.conftest import randn, tiny
from tests.models.attention.mixing.helpers import D, H, build, qkv
from tests.models.attention.mixing.linear_helpers import fixture

KNOBS = {"features": "4"}
# Queries and keys of 16 features a head in place of 8.
PARAMETERS = 2 * D * H * (16 - D // H)


class TestBased:
    def test_vector(self) -> None:
        q, k, v = fixture()
        made = build("based", heads=1, head_dim=2, scale=2**-0.5)
        expected = torch.tensor([[1, 0], [0.293163, 0.706837], [0.726541, 0.273459]])
        torch.testing.assert_close(made(Inputs(q, k), v)[0, 0], expected, atol=1e-6, rtol=0)

    def test_features(self) -> None:
        """[1, x, x_1^2 / sqrt 2, x_1 x_2, x_2^2 / sqrt 2] of q_1 = [0.5, 2] / 2^(1/4): x_1 x_2 once, not twice / 2."""
        found = taylor_features(torch.tensor([0.420448, 1.681793]))
        expected = torch.tensor([1, 0.420448, 1.681793, 0.125, 0.5 * 2**0.5, 2.0])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert taylor_features(torch.zeros(16)).numel() == 153

    def test_products_of_features_are_the_polynomial(self) -> None:
        x, y = (randn(50, 16, seed=s, dtype=torch.float64) for s in (1, 2))
        z = (x * y).sum(-1)
        found = (taylor_features(x) * taylor_features(y)).sum(-1)
        torch.testing.assert_close(found, 1 + z + z**2 / 2, atol=1e-12, rtol=1e-12)

    def test_weights_are_those_of_taylor(self) -> None:
        q, k, _ = qkv()
        torch.testing.assert_close(
            build("based").weights(Inputs(5 * q, k)), build("taylor", order=2).weights(Inputs(5 * q, k))
        )

    def test_chunks(self) -> None:
        made, (q, k, v) = build("based"), (randn(1, 2, 45, 4, seed=s) for s in (1, 2, 3))
        made.chunk = 8
        torch.testing.assert_close(made(Inputs(q, k), v), made.weights(Inputs(q, k)) @ v, atol=1e-5, rtol=1e-4)


def test_the_layer_has_narrow_queries_and_keys() -> None:
    layer = GPT(tiny("attention=based", "model.width=64"), vocab_size=32, context=8).blocks[0].attention
    shapes = {name: tuple(layer.get_parameter(f"{name}.weight").shape) for name in ("query", "key", "value", "out")}
    assert shapes == {"query": (32, 64), "key": (32, 64), "value": (64, 64), "out": (64, 64)}
    assert layer.rule.scale == 0.25  # type: ignore[union-attr]


def test_the_layout_of_the_paper() -> None:
    config = tiny(
        "attention=based", "attention.pattern=[short_conv,self,window,short_conv,short_conv]", "model.depth=6"
    )
    model = GPT(config, vocab_size=32, context=8)
    found = [type(block.attention.rule or block.attention).__name__ for block in model.blocks]  # type: ignore[union-attr]
    assert found == ["ShortConvolution", "Based", "LongShort"] + ["ShortConvolution"] * 3


@pytest.mark.parametrize(
    "given", [("layout=gqa",), ("layout=mla",), ("qk_norm=qkv",), ("placement=ngpt", "norm=none", "qk_norm=none")]
)
def test_refusals(given: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=rf"attention=based has queries and keys of their own width, but {given[0]}"):
        tiny("attention=based", *given)
