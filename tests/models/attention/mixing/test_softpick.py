"""Softpick."""

import pytest
import torch

from models.attention.mixing.base import Inputs
from models.attention.mixing.softpick import EPS
from tests.conftest import randn
from tests.models.attention.mixing.helpers import VALUES, K, T, build, of_logits, one_dimensional, qkv

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

    def test_small_logits_keep_their_digits(self) -> None:
        """z / (sum z + 1e-8), as e^z - 1 is z."""
        row = one_dimensional("softpick", [1e-7, 2e-7])
        torch.testing.assert_close(row, torch.tensor([1 / 3.1, 2 / 3.1]), atol=0, rtol=1e-6)

    @pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.1, 1.0, 3.0])
    def test_value_and_gradient_against_float64(self, scale: float) -> None:
        """Of queries and keys of this scale. Logits are of the order of its square."""
        leaves = [(scale * x).requires_grad_() for x in qkv()[:2]]
        found = build("softpick").weights(Inputs(*leaves))
        double = [x.detach().double().requires_grad_() for x in leaves]
        z = (K**-0.5 * double[0] @ double[1].mT).masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), 0)
        expected = z.expm1().relu() / (z.expm1().abs().sum(-1, keepdim=True) + EPS)
        # In fp32 a product is off by 6e-8 of the size of its terms, which is that of the logits.
        torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=2e-5)
        seed = randn(*found.shape)
        ours, theirs = (torch.autograd.grad((y * seed).sum(), x) for y, x in ((found, leaves), (expected, double)))
        for one, other in zip(ours, theirs, strict=True):
            assert (one - other).norm() < 1e-4 * other.norm()

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
