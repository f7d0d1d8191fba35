"""Sparsemax attention."""

import pytest
import torch

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import B, H, T, build, of_logits, one_dimensional, qkv

KNOBS: dict[str, str] = {}


class TestSparsemax:
    def test_vectors(self) -> None:
        """Projections onto the simplex; by hand."""
        expected = torch.tensor([[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0.1, 0.9, 0]])
        torch.testing.assert_close(of_logits("sparsemax"), expected, atol=1e-6, rtol=0)

    def test_rows_sum_to_one_with_exact_zeros(self) -> None:
        q, k, _ = qkv()
        weights = build("sparsemax").weights(Inputs(3 * q, k))
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T))
        assert (weights.tril()[..., -1, :] == 0).any()

    @pytest.mark.parametrize("shift", [-50.0, 50.0])
    def test_a_shift_changes_nothing(self, shift: float) -> None:
        keys = [0.3, -0.2, 1.0, 0.8]
        shifted = one_dimensional("sparsemax", [k + shift for k in keys])
        torch.testing.assert_close(shifted, one_dimensional("sparsemax", keys), atol=1e-5, rtol=0)

    def test_divergence_is_nan(self) -> None:
        rows = one_dimensional("sparsemax", [0.3, float("nan"), 1.0])
        assert rows.isnan().all()

    def test_gradient(self) -> None:
        """On the support the cotangent less its mean there, zero off it."""
        k = torch.tensor([-0.3, 0.7, 1.5, 0.0])[None, None, :, None].requires_grad_()
        rule = build("sparsemax", heads=1, head_dim=1, scale=1.0)
        row = rule.weights(Inputs(torch.ones_like(k), k))[0, 0, -1]
        (gradient,) = torch.autograd.grad(row @ torch.tensor([1.0, 2, 3, 4]), k)
        torch.testing.assert_close(gradient.flatten(), torch.tensor([0, -0.5, 0.5, 0]))
