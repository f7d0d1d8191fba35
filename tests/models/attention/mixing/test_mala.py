"""Magnitude-aware linear attention."""

import torch
import torch.nn.functional as F

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import B, H, K, T, alibi, build, qkv
from tests.models.attention.mixing.linear_helpers import fixture

KNOBS: dict[str, str] = {}


class TestMALA:
    def test_vector(self) -> None:
        q, k, v = fixture()
        made = build("mala", heads=1, head_dim=2, scale=1.0)
        expected = torch.tensor([[1, 0, 0], [-0.305556, 1.305556, 0], [-0.979634, 0.790341, 1.189293]])
        torch.testing.assert_close(made.weights(Inputs(q, k))[0, 0], expected, atol=2e-6, rtol=0)
        expected = torch.tensor([[1, 0], [-0.305556, 1.305556], [1.398952, -0.398952]])
        torch.testing.assert_close(made(Inputs(q, k), v)[0, 0], expected, atol=2e-6, rtol=0)

    def test_rows_sum_to_one_with_and_without_a_bias(self) -> None:
        q, k, _ = qkv()
        for bias in (None, alibi()):
            sums = build("mala").weights(Inputs(q, k, bias)).sum(-1)
            torch.testing.assert_close(sums, torch.ones(B, H, T), atol=1e-5, rtol=0)

    def test_the_magnitude_of_features_matters(self) -> None:
        """Twice the features of queries, at a scale twice as large: row sums S double."""
        (q, k, _), scale = qkv(), K**-0.5
        s = scale * ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
        count = torch.arange(1.0, T + 1)[:, None]
        for factor in (1, 2):
            total = factor * s.sum(-1, keepdim=True)
            expected = ((1 + 1 / total) * factor * s - total / count).tril()
            torch.testing.assert_close(build("mala", scale=factor * scale).weights(Inputs(q, k)), expected)
