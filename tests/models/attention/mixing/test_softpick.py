"""Softpick."""

import pytest
import torch

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import VALUES, build, of_logits, one_dimensional, qkv

KNOBS: dict[str, str] = {}


class TestSoftpick:
    def test_vectors(self) -> None:
        """relu(e^z - 1) / sum |e^z - 1|; in float64, by hand."""
        weights = of_logits("softpick")
        torch.testing.assert_close(weights[2, :3], torch.tensor([0.030570, 0.882152, 0.0]), atol=1e-6, rtol=0)
        torch.testing.assert_close(weights[3], torch.tensor([0.0, 0.213214, 0.732274, 0.0]), atol=1e-6, rtol=0)
        outputs = weights @ torch.tensor(VALUES)
        torch.testing.assert_close(outputs[3], torch.tensor([0.732274, 0.945488]), atol=1e-6, rtol=0)

    def test_large_logits(self) -> None:
        """Where e^z is far above 1, softmax over the positive ones: the -1 of the others is nothing to e^100."""
        row = one_dimensional("softpick", [100.0, -100.0, 99.0])
        torch.testing.assert_close(row, torch.tensor([0.731059, 0.0, 0.268941]), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("keys", [[0.0, 0.0, 0.0], [-1.0, -2.0, -0.1], [-1e3, -1e4, -1e5]])
    def test_without_a_positive_logit_the_row_is_zero_and_so_is_its_gradient(self, keys: list[float]) -> None:
        k = torch.tensor(keys)[None, None, :, None].requires_grad_()
        row = build("softpick", heads=1, head_dim=1, scale=1.0).weights(Inputs(torch.ones_like(k), k))[0, 0, -1]
        assert (row == 0).all()
        (gradient,) = torch.autograd.grad(row.sum(), k)
        assert (gradient == 0).all()

    def test_positive_logits_sum_to_one(self) -> None:
        assert one_dimensional("softpick", [0.1, 3.0, 1.0]).sum().item() == pytest.approx(1, rel=1e-6)

    def test_the_first_token_attends_to_itself_or_not_at_all(self) -> None:
        assert one_dimensional("softpick", [0.3]).item() == pytest.approx(1, rel=1e-6)
        assert one_dimensional("softpick", [-0.3]).item() == 0

    def test_a_shift_matters(self) -> None:
        (q, k, _), rule = qkv(), build("softpick")
        shift = torch.ones(q.shape[1], q.shape[2], q.shape[2])
        assert (rule.weights(Inputs(q, k, shift)) - rule.weights(Inputs(q, k))).abs().max() > 0.1
