"""Normalized attention pooling."""

import pytest
import torch

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import D, H, T, alibi, build, inputs, mixing, qkv
from tests.models.attention.mixing.test_lssa import rows

KNOBS = {"gelu": "false"}
PARAMETERS = 2 * H + 2 * D
VALUES = [[1.0, 0], [0, 1], [1, 1], [-1, 2]]


class TestStandardized:
    def test_vectors(self) -> None:
        weights = rows("nap").detach()
        expected = torch.tensor([-0.127870, -1.193449, 1.577057, -0.255739])
        torch.testing.assert_close(weights[3], expected, atol=1e-6, rtol=0)
        mixed = weights[3] @ torch.tensor(VALUES)
        torch.testing.assert_close(mixed, torch.tensor([1.704927, -0.127870]), atol=2e-6, rtol=0)
        assert (weights[0] == 0).all()
        torch.testing.assert_close(weights[1].abs()[:2], torch.ones(2), atol=3e-3, rtol=0)

    def test_rows_have_mean_zero_and_unit_spread(self) -> None:
        q, k, _ = qkv()
        weights = build("nap").weights(Inputs(q, k))
        count = torch.arange(1.0, T + 1)
        assert weights.sum(-1).abs().max() < 1e-5
        spread = (weights.square().sum(-1) / count).sqrt()[:, :, 2:]
        torch.testing.assert_close(spread, torch.ones_like(spread), atol=2e-2, rtol=0)

    @pytest.mark.parametrize("scale", [0.5, 30.0])
    def test_affine_maps_of_logits_change_nothing(self, scale: float) -> None:
        """Up to 1e-3, which is added to the spread; one vector added to all keys shifts each row."""
        (q, k, _), rule = qkv(), build("nap")
        shifted = rule.weights(Inputs(scale * q, k + qkv()[2][:, :, :1]))
        torch.testing.assert_close(shifted[:, :, 2:], rule.weights(Inputs(q, k))[:, :, 2:], atol=3e-2, rtol=1e-2)

    def test_gain_and_bias_are_a_head_each(self) -> None:
        (q, k, v), rule = qkv(), build("nap")
        before = rule.weights(Inputs(q, k))
        with torch.no_grad():
            rule.get_parameter("gain_H").copy_(torch.tensor([1.0, 3.0]))
            rule.get_parameter("bias_H").copy_(torch.tensor([0.0, 0.5]))
        after = rule.weights(Inputs(q, k))
        torch.testing.assert_close(after[:, 0], before[:, 0])
        torch.testing.assert_close(after[:, 1] @ v[:, 1], 3 * before[:, 1] @ v[:, 1] + 0.5 * v[:, 1].cumsum(-2))

    def test_the_norm_is_over_all_heads(self) -> None:
        (q, k, v), rule = qkv(), build("nap", gelu=False)
        outputs = rule(Inputs(q, k), v).transpose(1, 2).flatten(2)[:, 1:]
        assert outputs.mean(-1).abs().max() < 1e-5
        torch.testing.assert_close(outputs.square().mean(-1), torch.ones(outputs.shape[:2]), atol=2e-2, rtol=0)
        expected = torch.nn.functional.gelu(rule(Inputs(q, k), v), approximate="tanh")
        torch.testing.assert_close(build("nap")(Inputs(q, k), v), expected)

    def test_the_first_row_puts_out_what_a_norm_makes_of_zero(self) -> None:
        (q, k, v), rule = qkv(), build("nap")
        assert (rule(Inputs(q, k), v)[:, :, 0] == 0).all()

    @pytest.mark.parametrize("biased", [False, True])
    def test_equal_logits_have_finite_gradients(self, biased: bool) -> None:
        q, k, v = qkv()
        q = torch.zeros_like(q).requires_grad_()
        outputs = mixing("nap")(Inputs(q, k, alibi() if biased else None, inputs()), v)
        (gradient,) = torch.autograd.grad(outputs.sin().sum(), q)
        assert gradient.isfinite().all()

    def test_the_scale_is_not_read(self) -> None:
        q, k, _ = qkv()
        assert torch.equal(build("nap", scale=3.0).weights(Inputs(q, k)), build("nap").weights(Inputs(q, k)))
