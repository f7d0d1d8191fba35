"""Softmax with a truncated exponential."""

import math

import pytest
import torch

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import B, H, T, alibi, build, mixing, of_logits, one_dimensional, qkv

KNOBS: dict[str, str] = {"order": "1"}

Q = torch.tensor([[1.0, 0], [0.5, -1], [2, 1], [-1, 0.5]])[None, None]
K = torch.tensor([[0.5, 1.0], [1, -0.5], [-1, 2], [0.3, 0.3]])[None, None]


def of_order(order: int) -> torch.Tensor:
    return build("taylor", heads=1, head_dim=2, scale=2**-0.5, order=order).weights(Inputs(Q, K))[0, 0]


class TestTaylor:
    @pytest.mark.parametrize(("order", "error"), [(1, 9.4e-2), (2, 5.4e-2), (4, 3.8e-3), (8, 4.1e-6)])
    def test_error_against_softmax(self, order: int, error: float) -> None:
        """The largest, for logits between -1.06 and 1.59; in float64, by hand."""
        softmax = build("softmax", heads=1, head_dim=2, scale=2**-0.5).weights(Inputs(Q, K))[0, 0]
        assert (of_order(order) - softmax).abs().max().item() == pytest.approx(error, rel=0.03)

    def test_high_orders_are_softmax(self) -> None:
        (q, k, _), softmax = qkv(), mixing("softmax")
        for order in (20, 80):
            weights = build("taylor", order=order).weights(Inputs(q, k, alibi()))
            torch.testing.assert_close(weights, softmax.weights(Inputs(q, k, alibi())), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("order", [1, 2, 3, 4])
    def test_written_out(self, order: int) -> None:
        z = torch.tensor([-0.3, 0.7, 1.5, 0.0])
        p = sum(z**n / math.factorial(n) for n in range(order + 1))
        assert isinstance(p, torch.Tensor)
        torch.testing.assert_close(of_logits("taylor", order=order)[3], p / p.sum(), atol=1e-6, rtol=1e-5)

    def test_the_second_order_is_that_of_a_feature_map(self) -> None:
        """Based's [1, x / K^(1/4), x (x) x / (sqrt(2) K^(1/2))]: its scalar product is 1 + z + z^2 / 2."""

        def features(x: torch.Tensor) -> torch.Tensor:
            squares = (x[..., :, None] * x[..., None, :]).flatten(-2)
            return torch.cat([torch.ones_like(x[..., :1]), x / dim**0.25, squares / (2 * dim) ** 0.5], -1)

        (q, k, v), dim = qkv(), qkv()[0].shape[-1]
        kernel = (features(q) @ features(k).mT).tril()
        expected = kernel / kernel.sum(-1, keepdim=True) @ v
        torch.testing.assert_close(build("taylor", order=2)(Inputs(q, k), v), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("order", [2, 4, 10, 40])
    def test_even_orders_are_positive_and_sum_to_one(self, order: int) -> None:
        q, k, _ = qkv()
        weights = build("taylor", order=order).weights(Inputs(5 * q, k))
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T))
        assert weights.min() >= 0

    def test_the_denominator_of_an_odd_order_is_bounded(self) -> None:
        """1 + z of -0.98 and -1.02 cancel: +-0.02 over a hundredth of 0.04, with the sign of the sum."""
        row = one_dimensional("taylor", [-0.98, -1.02], order=1)
        torch.testing.assert_close(row.abs(), torch.full((2,), 50.0), rtol=1e-3, atol=0)
        assert (row[0] * row[1] < 0).all()
        row = one_dimensional("taylor", [-3.0, 1.0], order=1)
        assert row.abs().max() <= 100

    def test_a_negative_sum_keeps_its_sign(self) -> None:
        """-2 and 0.5 over -1.5."""
        torch.testing.assert_close(one_dimensional("taylor", [-3.0, -0.5], order=1), torch.tensor([4 / 3, -1 / 3]))

    @pytest.mark.parametrize("order", [1, 2, 3, 5, 8, 31, 80])
    @pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
    def test_finite(self, order: int, scale: float) -> None:
        q, k, v = (x.requires_grad_() for x in qkv())
        outputs = build("taylor", order=order)(Inputs(scale * q, k, alibi()), v)
        assert outputs.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(outputs.sum(), (q, k, v)))

    def test_large_logits_count_by_their_highest_power(self) -> None:
        row = one_dimensional("taylor", [1e6, 2e6], order=4)
        torch.testing.assert_close(row, torch.tensor([1 / 17, 16 / 17]), atol=1e-5, rtol=0)
