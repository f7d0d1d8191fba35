"""Kernelized attention with random features and relative positions."""

import math
from typing import Any, cast

import pytest
import torch

from models.attention.mixing.base import Inputs
from models.attention.mixing.nprf import RandomFeatures
from tests.conftest import randn
from tests.models.attention.mixing.helpers import H, K, T, build, mixing, qkv
from tests.models.attention.mixing.linear_helpers import fixture

KNOBS = {"unit": "false", "relative": "false", "features": "4"}
PARAMETERS = H * T


def of_fixture() -> tuple[RandomFeatures, list[torch.Tensor]]:
    """W the identity, and b = [0, -0.5, 0.3]."""
    made = cast(RandomFeatures, build("nprf", heads=1, head_dim=2, context=3))
    with torch.no_grad():
        made.directions.weight_FK.copy_(torch.eye(2))
        assert made.bias_HT is not None
        made.bias_HT.copy_(torch.tensor([[0, -0.5, 0.3]]))
    return made, fixture()


class TestNPRF:
    def test_vector(self) -> None:
        made, (q, k, v) = of_fixture()
        expected = torch.tensor([[1, 0], [0.304707, 0.695293], [1.110531, -0.110531]])
        torch.testing.assert_close(made(Inputs(q, k), v)[0, 0], expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(made.mixed(Inputs(q, k), v)[0, 0], expected, atol=2e-5, rtol=0)

    def test_fft_is_the_explicit_path(self) -> None:
        made = cast(RandomFeatures, mixing("nprf", context=150))
        q, k, v = (randn(1, H, 150, K, seed=s) for s in (1, 2, 3))
        torch.testing.assert_close(made.mixed(Inputs(q, k), v), made.weights(Inputs(q, k)) @ v, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("past", [-8.0, -12.0])
    def test_fft_keeps_rows_whose_sums_are_small(self, past: float) -> None:
        """A first row is its own value, whatever the sums of later rows: rounding is relative to the largest."""
        made = cast(RandomFeatures, mixing("nprf", context=2048))
        assert made.bias_HT is not None
        with torch.no_grad():
            made.bias_HT[:, 0] = past
        q, k, v = (randn(1, H, 2048, K, seed=s) for s in (1, 2, 3))
        torch.testing.assert_close(made.mixed(Inputs(q, k), v)[..., 0, :], v[..., 0, :], atol=1e-3, rtol=1e-3)

    @pytest.mark.parametrize("unit", [False, True])
    def test_features_estimate_the_exponential(self, unit: bool) -> None:
        """The mean over 200,000 features, each of relative variance exp(|q + k|^2) - 1."""
        made = cast(RandomFeatures, build("nprf", unit=unit, relative=False, scale=0.25, features=200_000))
        q, k = 0.5 * randn(1, H, 3, K, seed=1), 0.5 * randn(1, H, 3, K, seed=2)
        phi_q, phi_k = made.features(Inputs(q, k))
        x, y = (z / z.norm(dim=-1, keepdim=True) if unit else 0.5 * z for z in (q, k))
        exponent = made.directions.weight_FK @ x[..., None]
        removed = (exponent[..., 0].amax(-1) - x.square().sum(-1) / 2).exp()
        found, expected = (phi_q * phi_k).sum(-1) * removed, (x * y).sum(-1).exp()
        error = ((x + y).square().sum(-1).exp() - 1).sqrt() / math.sqrt(200_000)
        assert ((found / expected - 1).abs() < 5 * error).all()

    def test_unit_vectors_bound_the_ratio_of_exponentials(self) -> None:
        made, (q, k, _) = build("nprf"), qkv()
        torch.testing.assert_close(made.weights(Inputs(9 * q, 5 * k)), made.weights(Inputs(q, k)), atol=1e-5, rtol=1e-4)

    def test_a_bias_by_distance_multiplies(self) -> None:
        made, (q, k, _) = cast(RandomFeatures, build("nprf")), qkv()
        before = made.raw_weights(Inputs(q, k))
        with torch.no_grad():
            assert made.bias_HT is not None
            made.bias_HT[1, 3] = math.log(2)
        factor = torch.ones(H, T, T)
        factor[1].diagonal(-3).fill_(2.0)
        torch.testing.assert_close(made.raw_weights(Inputs(q, k)), factor * before)

    def test_distances_beyond_the_context_take_the_last(self) -> None:
        made = cast(RandomFeatures, mixing("nprf", context=4))
        assert made.bias_HT is not None
        torch.testing.assert_close(made.distances(7)[:, 3:], made.bias_HT[:, 3:].exp().expand(H, 4))

    def test_the_directions_are_those_of_the_seed(self) -> None:
        first: Any = build("nprf")
        with torch.no_grad():
            first.draw(torch.Generator().manual_seed(5))
        expected = torch.randn(K, K, generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(first.directions.weight_FK, expected)
        assert "directions.weight_FK" in first.state_dict()
