"""Sigmoid attention."""

import math
from typing import Any

import pytest
import torch

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import VALUES, build, mixing, of_logits, one_dimensional, qkv

KNOBS: dict[str, str] = {"bias": "false", "normalize": "true"}


class TestSigmoid:
    def test_vectors(self) -> None:
        """sigmoid(z - log 4); in float64, by hand."""
        weights = of_logits("sigmoid")
        expected = torch.tensor([0.156264, 0.334858, 0.528396, 0.2])
        torch.testing.assert_close(weights[3], expected, atol=1e-6, rtol=0)
        outputs = weights @ torch.tensor(VALUES)
        torch.testing.assert_close(outputs[3], torch.tensor([0.484660, 1.263254]), atol=1e-6, rtol=0)
        torch.testing.assert_close(outputs[0], torch.tensor([0.291875, 0.0]), atol=1e-6, rtol=0)

    def test_without_bias(self) -> None:
        """Similarity by a sigmoid alone: 1/2 at a logit of 0."""
        expected = torch.tensor([-0.3, 0.7, 1.5, 0.0]).sigmoid()
        torch.testing.assert_close(of_logits("sigmoid", bias=False)[3], expected, atol=1e-6, rtol=0)

    def test_normalized_vector(self) -> None:
        """Row 4 without a bias: sigmoids 0.5, 0.292374, 0.804430 and 0.473508 over their sum."""
        q = torch.tensor([[1.0, 0], [0.5, -1], [2, 1], [-1, 0.5]])[None, None]
        k = torch.tensor([[0.5, 1.0], [1, -0.5], [-1, 2], [0.3, 0.3]])[None, None]
        options: dict[str, Any] = {"heads": 1, "head_dim": 2, "scale": 2**-0.5, "bias": False}
        raw = build("sigmoid", **options).weights(Inputs(q, k))[0, 0]
        torch.testing.assert_close(raw[3], torch.tensor([0.5, 0.292374, 0.804430, 0.473508]), atol=1e-6, rtol=0)
        divided = build("sigmoid", **options, normalize=True).weights(Inputs(q, k))[0, 0]
        expected = torch.tensor([0.241510, 0.141222, 0.388555, 0.228714])
        torch.testing.assert_close(divided[3], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(divided.sum(-1), torch.ones(4), atol=1e-6, rtol=0)

    def test_a_row_without_weight_stays_one(self) -> None:
        """Sigmoids that underflow, e^-200, sum to zero."""
        row = one_dimensional("sigmoid", [-200.0, -300], normalize=True)
        assert row.tolist() == [0, 0]

    @pytest.mark.parametrize("keys", [1, 4, 16, 64])
    def test_zero_logits_sum_to_the_share_of_the_context(self, keys: int) -> None:
        """i sigmoid(-log n) = i / (n + 1): n is the context, not the row's length."""
        row = one_dimensional("sigmoid", [0.0] * keys, context=16)
        assert row.sum().item() == pytest.approx(keys / 17, rel=1e-6)

    def test_a_large_context_is_softmax_but_for_the_sum(self) -> None:
        """As b -> -inf, e^-b sigmoid(z + b) -> e^z."""
        (q, k, _), softmax = qkv(), mixing("softmax")
        weights = mixing("sigmoid", context=10**6).weights(Inputs(q, k))
        torch.testing.assert_close(
            weights / weights.sum(-1, keepdim=True), softmax.weights(Inputs(q, k)), atol=1e-5, rtol=1e-4
        )

    def test_weights_of_a_key_do_not_depend_on_others(self) -> None:
        alone, among = one_dimensional("sigmoid", [0.7]), one_dimensional("sigmoid", [5.0, -2, 0.7])
        assert alone[-1].item() == among[-1].item() == pytest.approx(1 / (1 + 4 * math.exp(-0.7)), rel=1e-6)
