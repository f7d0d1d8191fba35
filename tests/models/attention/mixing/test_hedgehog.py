"""Hedgehog's feature maps."""

import pytest
import torch

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import B, H, K, T, build, qkv
from tests.models.attention.mixing.linear_helpers import fixture

KNOBS = {"map": "exp"}
PARAMETERS = 2 * H * K * K


class TestHedgehog:
    def test_vector(self) -> None:
        q, k, v = fixture()
        made = build("hedgehog", heads=1, head_dim=2)
        expected = torch.tensor([0.880797, 0.119203, 0.119203, 0.880797])
        torch.testing.assert_close(made.features(Inputs(q, k))[0][0, 0, 0], expected, atol=1e-6, rtol=0)  # type: ignore[operator]
        expected = torch.tensor([[1, 0], [0.353243, 0.646757], [0.882685, 0.117315]])
        torch.testing.assert_close(made(Inputs(q, k), v)[0, 0], expected, atol=1e-6, rtol=0)

    def test_exp_is_the_equation(self) -> None:
        (q, k, _), made = qkv(), build("hedgehog", map="exp")
        phi_q, phi_k = (torch.cat([u.exp(), (-u).exp()], -1) for u in (q, k))
        w = (phi_q @ phi_k.mT).tril()
        torch.testing.assert_close(made.weights(Inputs(q, k)), w / w.sum(-1, keepdim=True))

    @pytest.mark.parametrize("map", ["softmax", "exp"])
    def test_saturated_features_lose_no_row(self, map: str) -> None:
        (q, k, _), made = qkv(), build("hedgehog", map=map)
        weights = made.weights(Inputs(1e3 * q, -1e3 * k))
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T), atol=1e-4, rtol=0)

    def test_maps_are_a_head_each_and_separate_for_keys(self) -> None:
        (q, k, _), made = qkv(), build("hedgehog")
        before = made.weights(Inputs(q, k))
        with torch.no_grad():
            made.get_parameter("key_HKK")[1, 0, 3] += 1.0
        after = made.weights(Inputs(q, k))
        torch.testing.assert_close(after[:, 0], before[:, 0])
        k_0 = k.clone()
        k_0[:, 1, :, 0] += k[:, 1, :, 3]
        torch.testing.assert_close(after, build("hedgehog").weights(Inputs(q, k_0)))
