"""cosFormer."""

import math

import torch

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import build, qkv
from tests.models.attention.mixing.linear_helpers import fixture

KNOBS: dict[str, str] = {}
BUT = {"test_gradcheck": "a step of 1e-2 crosses the kinks of relu, which the gradients of both paths agree on"}


class TestCosFormer:
    def test_vector(self) -> None:
        """At a context of 4."""
        q, k, v = fixture()
        made = build("cosformer", heads=1, head_dim=2, context=4)
        expected = torch.tensor([[1, 0], [0.187632, 0.812368], [1.039566, -0.039566]])
        torch.testing.assert_close(made(Inputs(q, k), v)[0, 0], expected, atol=1e-6, rtol=0)

    def test_weights_fall_like_a_cosine(self) -> None:
        ones = torch.ones(1, 1, 4, 1)
        weights = build("cosformer", heads=1, head_dim=1, context=4).weights(Inputs(ones, ones))[0, 0, 3]
        expected = torch.tensor([math.cos(math.pi / 8 * back) for back in (3, 2, 1, 0)])
        torch.testing.assert_close(weights, expected / expected.sum())

    def test_weights_are_not_negative_at_the_context_and_beyond(self) -> None:
        (q, k, _), made = qkv(), build("cosformer", context=6)
        assert made.weights(Inputs(q, k)).min() >= -1e-6

    def test_a_query_without_positive_features_has_no_weights(self) -> None:
        (q, k, v), made = qkv(), build("cosformer")
        q[:, :, 4] = -q[:, :, 4].abs()
        assert (made.weights(Inputs(q, k))[:, :, 4] == 0).all()
        assert (made(Inputs(q, k), v)[:, :, 4] == 0).all()
