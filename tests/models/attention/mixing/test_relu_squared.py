"""Squared-ReLU attention."""

import math

import pytest
import torch

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import LOGITS, build, mixing, one_dimensional, qkv

KNOBS: dict[str, str] = {}


class TestSquaredReLU:
    def test_three_tokens_of_dimension_two(self) -> None:
        """Products 1; 0.5, 2; -1, 1, 0. Squared where positive, over sqrt(4)."""
        q = torch.tensor([[[[1.0, -1], [0.5, 2], [-1, 1]]]])
        k = torch.tensor([[[[1.0, 0], [0, 1], [1, 1]]]])
        v = torch.tensor([[[[1.0, 0], [0, 1], [2, -1]]]])
        rule = build("relu_squared", heads=1, head_dim=2, scale=1.0, context=4)
        expected = torch.tensor([[0.5, 0, 0], [0.125, 2, 0], [0, 0.5, 0]])
        assert torch.equal(rule.weights(Inputs(q, k))[0, 0], expected)
        assert torch.equal(rule(Inputs(q, k), v)[0, 0], torch.tensor([[0.5, 0], [0.125, 2], [0, 0.5]]))
        # Of 1/17 and 16/17; the other rows have one weight.
        entropies = torch.tensor([0, math.log(17) - 16 / 17 * math.log(16), 0])
        torch.testing.assert_close(rule.entropy(Inputs(q, k))[0, 0], entropies, atol=1e-6, rtol=0)

    def test_the_length_is_that_of_training(self) -> None:
        """For one key and for many, the weight of a product of 3 is 9 / sqrt(context)."""
        for keys in ([3.0], [0.0, -1, 5, 3]):
            assert one_dimensional("relu_squared", keys, context=16)[-1].item() == pytest.approx(9 / 4)

    def test_weights_are_homogeneous_in_queries(self) -> None:
        """Of degree 2: nothing holds the size of what attention puts out."""
        rule, (q, k, v) = mixing("relu_squared"), qkv()
        torch.testing.assert_close(rule(Inputs(3 * q, k), v), 9 * rule(Inputs(q, k), v), atol=1e-5, rtol=1e-5)

    def test_a_bias_is_part_of_the_logit(self) -> None:
        rule = build("relu_squared", heads=1, head_dim=2, scale=1.0, context=4)
        weights = rule.weights(Inputs(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), torch.tensor([LOGITS])))
        torch.testing.assert_close(weights[0, 0, 3], torch.tensor([0, 0.245, 1.125, 0]))
