"""Inverse distance weighting."""

import pytest
import torch

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import B, H, T, alibi, build, mixing, one_dimensional, qkv
from tests.models.attention.mixing.test_lssa import rows

KNOBS = {"eps": "1", "power": "1"}


class TestInverseDistance:
    def test_vectors(self) -> None:
        weights = rows("idw")
        torch.testing.assert_close(weights[2], torch.tensor([0.521518, 0.361100, 0.117382, 0]), atol=1e-6, rtol=0)
        expected = torch.tensor([0.246549, 0.123299, 0.273931, 0.356221])
        torch.testing.assert_close(weights[3], expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
    def test_odds_are_of_inverse_distances(self, power: float) -> None:
        """The query is 1: distances 1, 2 and 4 of the three keys, eps far below."""
        weights = one_dimensional("idw", [2.0, -1.0, 5.0], power=power, eps=1e-9)
        expected = torch.tensor([1.0, 2.0, 4.0]) ** -power
        torch.testing.assert_close(weights, expected / expected.sum(), atol=1e-6, rtol=1e-5)

    def test_a_key_at_the_query_has_distance_eps(self) -> None:
        weights = one_dimensional("idw", [1.0, 2.0], eps=0.25)
        torch.testing.assert_close(weights, torch.tensor([4.0, 0.8]) / 4.8, atol=1e-6, rtol=0)
        assert one_dimensional("idw", [1.0, 2.0, 3.0], eps=1e-9)[0] > 1 - 1e-6

    def test_isometries_change_nothing(self) -> None:
        (q, k, _), rule = qkv(), build("idw")
        turn, _ = torch.linalg.qr(qkv()[2][0, 0, :8])
        moved = [x @ turn + 1.5 for x in (q, k)]
        torch.testing.assert_close(rule.weights(Inputs(*moved)), rule.weights(Inputs(q, k)), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            rule.weights(Inputs(10 * q, 10 * k)), rule.weights(Inputs(q, k)), atol=1e-3, rtol=1e-2
        )
        assert (rule.weights(Inputs(q, k)).sum(-1) - 1).abs().max() < 1e-6

    def test_a_bias_adds_to_the_logarithm(self) -> None:
        (q, k, _), bias = qkv(), alibi()
        assert bias is not None
        expected = build("idw").weights(Inputs(q, k)) * bias.exp()
        found = build("idw").weights(Inputs(q, k, bias))
        torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("power", [1.0, 2.0])
    def test_gradients_where_queries_are_keys(self, power: float) -> None:
        q, _, v = qkv()
        k = q.clone().requires_grad_()
        outputs = build("idw", power=power)(Inputs(q.requires_grad_(), k), v)
        for gradient in torch.autograd.grad(outputs.square().sum(), (q, k)):
            assert gradient.isfinite().all()
        assert mixing("idw").weights(Inputs(q, k)).shape == (B, H, T, T)

    def test_the_scale_is_not_read(self) -> None:
        q, k, _ = qkv()
        assert torch.equal(build("idw", scale=3.0).weights(Inputs(q, k)), build("idw").weights(Inputs(q, k)))
