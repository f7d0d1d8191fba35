"""Kernel attention with the features elu + 1."""

import pytest
import torch
import torch.nn.functional as F

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs
from tests.conftest import tiny
from tests.models.attention.mixing.helpers import B, H, K, T, alibi, build, qkv

KNOBS = {"normalize": "false"}

# Queries and keys of four tokens.
Q = torch.tensor([[1.0, 0], [0.5, -1], [2, 1], [-1, 0.5]])[None, None]
KEYS = torch.tensor([[0.5, 1.0], [1, -0.5], [-1, 2], [0.3, 0.3]])[None, None]


def rows(normalize: bool) -> torch.Tensor:
    return build("elu", heads=1, head_dim=2, scale=2**-0.5, normalize=normalize).weights(Inputs(Q, KEYS))[0, 0]


class TestElu:
    def test_vectors(self) -> None:
        """In float64, by hand: the row sums are 3.535534, 4.390347, 16.133844 and 8.669803."""
        divided, raw = rows(True), rows(False)
        expected = torch.tensor([0.289685, 0.134211, 0.378057, 0.198047])
        torch.testing.assert_close(divided[3], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(divided[1, :2], torch.tensor([0.480885, 0.519115]), atol=1e-6, rtol=0)
        expected = torch.tensor([2.511515, 1.163583, 3.277677, 1.717027])
        torch.testing.assert_close(raw[3], expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(divided, raw / raw.sum(-1, keepdim=True))

    def test_it_is_the_kernel(self) -> None:
        (q, k, v), bias = qkv(), alibi()
        assert bias is not None
        s = K**-0.5 * ((F.elu(q) + 1) @ (F.elu(k) + 1).mT)
        for given, expected in ((None, s.tril()), (bias, (s * bias.exp()).tril())):
            raw = build("elu", normalize=False)
            torch.testing.assert_close(raw.weights(Inputs(q, k, given)), expected)
            torch.testing.assert_close(raw(Inputs(q, k, given), v), expected @ v, atol=1e-5, rtol=1e-5)
            divided = build("elu").weights(Inputs(q, k, given))
            torch.testing.assert_close(divided, expected / expected.sum(-1, keepdim=True))

    def test_the_scale_cancels_in_the_division_alone(self) -> None:
        q, k, v = qkv()
        one, four = (build("elu", scale=scale)(Inputs(q, k), v) for scale in (1.0, 4.0))
        torch.testing.assert_close(one, four)
        one, four = (build("elu", scale=scale, normalize=False)(Inputs(q, k), v) for scale in (1.0, 4.0))
        torch.testing.assert_close(4 * one, four)

    def test_a_scale_that_cancels_is_not_set(self) -> None:
        with pytest.raises(ConfigError, match="only sets the factor of q k\\^T, which attention=elu doesn't have"):
            tiny("attention=elu", "parametrization=inverse_scale")
        assert tiny("attention=elu", "attention.normalize=false", "parametrization=inverse_scale")

    def test_queries_of_zero_take_the_mean_by_key_sizes(self) -> None:
        """phi(0) = 1: every weight is the sum of a key's features."""
        q, k, _ = qkv()
        sizes = (F.elu(k) + 1).sum(-1)
        found = build("elu").weights(Inputs(torch.zeros_like(q), k))
        assert found.shape == (B, H, T, T)
        torch.testing.assert_close(found[:, :, -1], sizes / sizes.sum(-1, keepdim=True))
