"""Clipped softmax."""

import pytest
import torch

from models.attention.mixing.base import Inputs
from tests.conftest import randn
from tests.models.attention.mixing.helpers import B, D, T, build, inputs, layer, of_logits, output, qkv

KNOBS: dict[str, str] = {"alpha": "1", "zeta": "1.5"}
BUT = {
    "test_a_token_does_not_change_outputs_before_it": "near-uniform rows are clipped to zero, whatever the token: "
    "TestClippedSoftmax.test_causality has sharp ones",
}


class TestClippedSoftmax:
    def test_vectors(self) -> None:
        """clip((zeta - gamma) p + gamma, 0, 1), gamma = -alpha / 4; in float64, by hand."""
        weights = of_logits("clipped_softmax", alpha=0.4)
        torch.testing.assert_close(weights[2, :3], torch.tensor([0.049643, 0.805286, 0.0]), atol=1e-6, rtol=0)
        torch.testing.assert_close(weights[3], torch.tensor([0.0, 0.168948, 0.498555, 0.033556]), atol=1e-6, rtol=0)
        weights = of_logits("clipped_softmax", alpha=0.12, zeta=1.03)
        expected = torch.tensor([0.065343, 0.229168, 0.546790, 0.098699])
        torch.testing.assert_close(weights[3], expected, atol=1e-6, rtol=0)

    def test_nothing_to_clip_is_softmax(self) -> None:
        q, k, _ = qkv()
        off = build("clipped_softmax", alpha=0.0, zeta=1.0).weights(Inputs(q, k))
        torch.testing.assert_close(off, build("softmax").weights(Inputs(q, k)), atol=0, rtol=0)

    def test_gamma_follows_the_context(self) -> None:
        assert build("clipped_softmax", alpha=12.0, context=512).gamma == pytest.approx(-0.0234, abs=1e-4)

    def test_exact_zeros_and_ones(self) -> None:
        """Below p = -gamma / (zeta - gamma) zero, above (1 - gamma) / (zeta - gamma) one: no gradient at either."""
        rule = build("clipped_softmax", alpha=1.2, zeta=1.2, heads=1, head_dim=1, scale=1.0)
        k = torch.tensor([0.0, 0.5, 4.0])[None, None, :, None].requires_grad_()
        row = rule.weights(Inputs(torch.ones_like(k), k))[0, 0, -1]
        p = k.flatten().softmax(0)
        assert (p[:2] < 0.1 / 1.3).all()
        assert p[2] > 1.1 / 1.3
        assert row.tolist() == [0, 0, 1]
        (gradient,) = torch.autograd.grad(row.sum(), k)
        assert (gradient == 0).all()

    def test_rows_sum_to_at_most_one(self) -> None:
        q, k, _ = qkv()
        sums = build("clipped_softmax", alpha=1.0).weights(Inputs(q, k)).sum(-1)
        assert (sums <= 1 + 1e-6).all()
        assert (sums[..., 1:] < 1).all()

    @pytest.mark.parametrize("position", ["rope", "alibi"])
    @pytest.mark.parametrize("t", [1, 5, T - 1])
    def test_causality(self, position: str, t: int) -> None:
        attention, x_BTD = layer("clipped_softmax", position), 5 * inputs()
        changed_BTD = x_BTD.clone()
        changed_BTD[:, t] += 5 * randn(B, D, seed=7)
        before, after = output(attention, x_BTD), output(attention, changed_BTD)
        torch.testing.assert_close(after[:, :t], before[:, :t], atol=1e-6, rtol=0)
        assert (after[:, t] - before[:, t]).abs().max() > 1e-3
