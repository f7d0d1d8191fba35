"""TransNormerLLM's attention."""

from typing import cast

import pytest
import torch
import torch.nn.functional as F

from models.attention.linear_time import linear_attention
from models.attention.mixing.base import Inputs
from models.attention.mixing.transnormer import TransNormer, slopes
from tests.models.attention.mixing.helpers import D, H, K, T, build, inputs, qkv
from tests.models.attention.mixing.linear_helpers import fixture

KNOBS = {"slopes": "paper", "lrpe": "none"}
PARAMETERS = D * D + D


def rule(**changes: str | int) -> TransNormer:
    return cast(TransNormer, build("transnormer", **changes))


class TestTransNormer:
    def test_vector(self) -> None:
        """Without silu and lrpe, at a decay of 0.5 a token."""
        q, k, v = fixture()
        found = linear_attention(q, k, v, torch.full((1, 1, 3), 0.5).log())
        expected = torch.tensor([[1, 0], [0.25, 2], [-0.25, 0.5]])
        torch.testing.assert_close(found[0, 0], expected, atol=1e-6, rtol=0)

    def test_slopes(self) -> None:
        """The first two of eight heads in the first of four blocks."""
        expected = torch.tensor([0.472367, 0.223130])
        torch.testing.assert_close((-slopes(8, 0, 4, "paper")).exp()[:2], expected, atol=1e-6, rtol=0)
        expected = torch.tensor([0.606528, 0.778797])
        torch.testing.assert_close((-slopes(8, 0, 4, "code")).exp()[:2], expected, atol=1e-5, rtol=0)
        assert (slopes(8, 3, 4, "paper") == 0).all()
        torch.testing.assert_close(slopes(8, 3, 4, "code"), 1e-5 * 2.0 ** -torch.arange(1.0, 9), atol=1e-9, rtol=1e-3)

    def test_weights(self) -> None:
        (q, k, _), made = qkv(), rule(block=1, depth=3)
        back = torch.arange(T)[:, None] - torch.arange(T)
        decay = (-made.slope_H[:, None, None] * back).exp()
        expected = (F.silu(q) @ F.silu(k).mT * decay).tril()
        torch.testing.assert_close(made.weights(Inputs(q, k, None, inputs())), expected)

    def test_lrpe_multiplies_products_by_cosines_of_the_distance(self) -> None:
        (q, k, _), made = qkv(), rule()
        assert made.theta_HK is not None
        plain = rule(lrpe="none")
        back = (torch.arange(T)[:, None] - torch.arange(T))[None, :, :, None]
        products = F.silu(q)[:, :, :, None] * F.silu(k)[:, :, None] * (made.theta_HK[:, None, None] * back).cos()
        decay = (-plain.slope_H[:, None, None] * back[..., 0]).exp()
        expected = (products.sum(-1) * decay).tril()
        found = made.weights(Inputs(q, k, None, inputs()))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize(("lrpe", "blocks"), [("first", [True, False]), ("all", [True] * 2), ("none", [False] * 2)])
    def test_blocks_with_lrpe(self, lrpe: str, blocks: list[bool]) -> None:
        assert [rule(lrpe=lrpe, block=i).theta_HK is not None for i in (0, 1)] == blocks

    def test_theta(self) -> None:
        theta = rule().theta_HK
        assert theta is not None
        expected = torch.tensor([10_000.0 ** (-2 * d / D) for d in range(D)])
        torch.testing.assert_close(theta.flatten().detach(), expected)

    def test_norm_of_all_heads_and_linear_gate(self) -> None:
        made, (_, _, v), x = rule(), qkv(), inputs()
        flat = v.transpose(1, 2).flatten(2)
        normed = flat / flat.square().mean(-1, keepdim=True).sqrt()
        expected = (normed * (x @ made.gate.weight.T)).unflatten(-1, (H, K)).transpose(1, 2)
        torch.testing.assert_close(made.finish(v, x), expected, atol=1e-5, rtol=1e-4)
