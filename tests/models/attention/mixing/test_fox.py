"""Forgetting attention."""

import math
from typing import cast

import pytest
import torch

from models.attention.mixing.base import Inputs
from models.attention.mixing.fox import Forgetting
from models.probes import causal
from tests.models.attention.mixing.helpers import LOGITS, VALUES, B, D, H, T, alibi, build, inputs, mixing, qkv

KNOBS: dict[str, str] = {}
PARAMETERS = D * H + H
GATES = [0.9, 0.5, 0.8, 0.99]


def with_gates(gates: list[float], **shape: int) -> tuple[Forgetting, torch.Tensor]:
    """A rule, and inputs whose first channel is the logit of every head's gate."""
    rule = cast(Forgetting, build("fox", **shape))
    with torch.no_grad():
        rule.forget.linear.weight.zero_()
        rule.forget.linear.weight[:, 0] = 1.0
    x = torch.zeros(1, len(gates), rule.forget.linear.in_features)
    x[..., 0] = torch.logit(torch.tensor(gates, dtype=torch.float64)).float()
    return rule, x


class TestForgetting:
    def test_vectors(self) -> None:
        rule, x = with_gates(GATES, heads=1, head_dim=2)
        zero, logits = torch.zeros(1, 1, 4, 2), torch.tensor([LOGITS])
        c = rule.kept(x)[0, 0]
        expected = torch.tensor([-0.926341, -0.233194, -0.010050, 0])
        torch.testing.assert_close(c[3] - c, expected, atol=1e-6, rtol=0)
        expected = torch.tensor([0.040049, 0.217729, 0.605706, 0.136516])
        torch.testing.assert_close(rule.weights(Inputs(zero, zero, logits, x))[0, 0, 3], expected, atol=1e-6, rtol=0)
        outputs = rule(Inputs(zero, zero, logits, x), torch.tensor(VALUES)[None, None])[0, 0, 3]
        torch.testing.assert_close(outputs, torch.tensor([0.509238, 1.096467]), atol=1e-6, rtol=0)

    def test_open_gates_are_softmax(self) -> None:
        """log sigmoid(30) = -1e-13."""
        (q, k, v), softmax = (x[:1] for x in qkv()), mixing("softmax")
        rule, x = with_gates([0.5] * T)
        x[..., 0] = 30.0
        torch.testing.assert_close(
            rule.weights(Inputs(q, k, None, x)), softmax.weights(Inputs(q, k)), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(rule(Inputs(q, k, None, x), v), softmax(Inputs(q, k), v), atol=1e-6, rtol=0)

    def test_constant_gates_are_alibi(self) -> None:
        """Slopes 2^-4 and 2^-8 of two heads: f = exp(-slope), as a bias of the gates."""
        (q, k, v), softmax, rule = qkv(), mixing("softmax"), cast(Forgetting, build("fox"))
        with torch.no_grad():
            rule.forget.linear.weight.zero_()
            assert rule.forget.bias is not None
            rule.forget.bias.copy_(torch.logit(torch.tensor([math.exp(-(2.0**-4)), math.exp(-(2.0**-8))])))
        expected = softmax.weights(Inputs(q, k, alibi()))
        torch.testing.assert_close(rule.weights(Inputs(q, k, None, inputs())), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            rule(Inputs(q, k, None, inputs()), v), softmax(Inputs(q, k, alibi()), v), atol=1e-5, rtol=1e-5
        )

    def test_a_closed_gate_forgets_all_before_it(self) -> None:
        (q, k, v), (rule, x) = (x[:1] for x in qkv()), with_gates([0.5] * T)
        x[:, 5, 0] = -200.0
        weights = rule.weights(Inputs(q, k, None, x))
        assert (weights[:, :, 5:, :5] == 0).all()
        assert weights[:, :, 4, :5].min() > 0
        torch.testing.assert_close(rule(Inputs(q, k, None, x), v)[:, :, 5], v[:, :, 5], atol=1e-4, rtol=1e-5)

    def test_the_first_gate_never_matters(self) -> None:
        (q, k, _), x, rule = qkv(), inputs(), mixing("fox")
        changed = x.clone()
        changed[:, 0] += 3.0
        torch.testing.assert_close(
            rule.weights(Inputs(q, k, None, changed)), rule.weights(Inputs(q, k, None, x)), atol=1e-6, rtol=0
        )

    @pytest.mark.parametrize("scale", [8**-0.5, 1 / 8, 4.0])
    def test_entropy_without_the_weights(self, scale: float) -> None:
        (q, k, _), x, rule = qkv(), inputs(), build("fox", scale=scale)
        expected = torch.special.entr(rule.weights(Inputs(q, k, None, x))).sum(-1)
        torch.testing.assert_close(rule.entropy(Inputs(q, k, None, x)), expected, atol=1e-4, rtol=1e-4)

    def test_a_product_and_a_gate_add_up(self) -> None:
        (q, k, _), x, rule = qkv(), inputs(), cast(Forgetting, mixing("fox"))
        z = causal(q @ k.mT * rule.scale)
        log_f = torch.nn.functional.logsigmoid(x @ rule.forget.linear.weight.T + rule.forget.bias)
        expected = z[0, 1, 6, 2] + log_f[0, 3:7, 1].sum() - z[0, 1, 6, 6]
        found = rule.weights(Inputs(q, k, None, x))[0, 1, 6].log()
        assert (found[2] - found[6]).item() == pytest.approx(expected.item(), abs=1e-4)
        assert rule.weights(Inputs(q, k, None, x)).shape == (B, H, T, T)
