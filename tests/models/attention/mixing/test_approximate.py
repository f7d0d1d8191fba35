"""Softmax with a polynomial for the exponential."""

import pytest
import torch

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import B, H, T, alibi, build, mixing, one_dimensional, qkv
from tests.models.attention.mixing.test_lssa import rows

KNOBS: dict[str, str] = {}


class TestApproximate:
    def test_vectors(self) -> None:
        weights = rows("approximate")
        torch.testing.assert_close(weights[2], torch.tensor([0.485155, 0.372747, 0.142098, 0]), atol=1e-6, rtol=0)
        expected = torch.tensor([0.171806, 0.087061, 0.586583, 0.154550])
        torch.testing.assert_close(weights[3], expected, atol=1e-6, rtol=0)

    def test_the_polynomial(self) -> None:
        weights = one_dimensional("approximate", [-4.0, -1, 0, 2])
        torch.testing.assert_close(weights, torch.tensor([5, 0.5, 1, 5]) / 11.5, atol=1e-6, rtol=0)

    def test_small_logits_are_softmax_to_third_order(self) -> None:
        q, k, v = qkv()
        q = 0.1 * q / (q @ k.mT * 8**-0.5).abs().max()
        difference = build("approximate").weights(Inputs(q, k)) - mixing("softmax").weights(Inputs(q, k))
        assert 1e-7 < difference.abs().max() < 2e-4
        torch.testing.assert_close(
            build("approximate")(Inputs(q, k), v), mixing("softmax")(Inputs(q, k), v), atol=1e-3, rtol=0
        )

    @pytest.mark.parametrize("factor", [1.0, 1e6])
    def test_rows_sum_to_one_and_all_keys_have_weight(self, factor: float) -> None:
        q, k, _ = qkv()
        weights = build("approximate").weights(Inputs(factor * q, k))
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T))
        assert torch.equal(weights > 0, torch.ones(T, T).tril().bool().expand(B, H, T, T))

    def test_a_bias_is_not_approximated(self) -> None:
        (q, k, _), bias = qkv(), alibi()
        assert bias is not None
        expected = build("approximate").weights(Inputs(q, k)) * bias.exp()
        found = build("approximate").weights(Inputs(q, k, bias))
        torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)
