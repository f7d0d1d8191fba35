"""Affine-scaled attention."""

from typing import cast

import pytest
import torch

from models.attention.mixing.affine_scaled import AffineScaled
from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import LOGITS, B, D, H, T, build, inputs, mixing, qkv

KNOBS = {"rho": "0.5", "count": "visible"}
PARAMETERS = D * H
# Gates of x = -6, 0, 2, 4 by hand, and an average of 0.45.
GATES, ALPHA = [-6.0, 0, 2, 4], [0.0, 0.5, 0.7, 0.9]


def by_hand(count: str) -> AffineScaled:
    rule = cast(AffineScaled, build("affine_scaled", heads=1, head_dim=1, context=4, count=count))
    with torch.no_grad():
        rule.gate.linear.weight.fill_(1.0)
        rule.average_H.fill_(0.45)
    return rule


def of_gates(count: str) -> torch.Tensor:
    zero = torch.zeros(1, 1, 4, 1)
    inputs = Inputs(zero, zero, torch.tensor([LOGITS]), torch.tensor([GATES])[..., None])
    return by_hand(count).weights(inputs)[0, 0].detach()


class TestAffineScaled:
    def test_vectors(self) -> None:
        visible, context = of_gates("visible"), of_gates("context")
        expected = torch.tensor([-0.031549, 0.107549, 0.377227, -0.003227])
        torch.testing.assert_close(visible[3], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(context[2], torch.tensor([0.032727, 0.513591, -0.033818, 0]), atol=1e-6, rtol=0)
        assert context[0, 0].item() == pytest.approx(0.1125, abs=1e-6)

    def test_sums_of_rows(self) -> None:
        torch.testing.assert_close(of_gates("visible").sum(-1), torch.full((4,), 0.45))
        alpha, share = torch.tensor(ALPHA), torch.arange(1, 5) / 4
        torch.testing.assert_close(of_gates("context").sum(-1), alpha + (0.45 - alpha) * share)

    def test_open_gates_are_softmax(self) -> None:
        rule, softmax, (q, k, v) = by_hand("context").eval(), mixing("softmax"), (x[:, :1] for x in qkv())
        rule.scale = softmax.scale
        with torch.no_grad():
            rule.average_H.fill_(1.0)
        x = torch.full((B, T, 1), 5.0)
        torch.testing.assert_close(
            rule.weights(Inputs(q, k, None, x)), softmax.weights(Inputs(q, k)), atol=1e-6, rtol=0
        )
        torch.testing.assert_close(rule(Inputs(q, k, None, x), v), softmax(Inputs(q, k), v), atol=1e-6, rtol=0)

    def test_the_average_follows_training_steps(self) -> None:
        """a (1 - 0.9^t) after t steps whose gates are all a; neither weights, probes nor mixing move it."""
        rule = cast(AffineScaled, build("affine_scaled"))
        (q, k, v), x = qkv(), inputs()
        with torch.no_grad():
            rule.gate.linear.weight.zero_()
        for t in range(1, 6):
            rule.observe(Inputs(q, k, None, x))
            rule.end_step()
            torch.testing.assert_close(rule.average_H, torch.full((H,), 0.5 * (1 - 0.9**t)))
        before = rule.average_H.clone()
        rule.weights(Inputs(q, k, None, x))
        rule.watch(Inputs(q, k, None, x))
        rule(Inputs(q, k, None, x), v)
        rule.end_step()
        assert torch.equal(rule.average_H, before)
        assert "average_H" in rule.state_dict()

    def test_a_step_takes_the_mean_over_its_micro_batches(self) -> None:
        rule, whole = (cast(AffineScaled, mixing("affine_scaled")) for _ in range(2))
        (q, k, _), x = qkv(), inputs()
        for part in range(B):
            rule.observe(Inputs(q, k, None, x[part : part + 1]))
        rule.end_step()
        alpha_BHT1, _ = whole.affine(x)
        torch.testing.assert_close(rule.average_H, 0.1 * alpha_BHT1.mean((0, 2, 3)).detach())

    def test_clipped_gates_have_no_gradient(self) -> None:
        rule, (q, k, v), x = by_hand("context"), (x[:, :1, :4, :1] for x in qkv()), torch.tensor([GATES] * B)[..., None]
        (gradient,) = torch.autograd.grad(rule(Inputs(q, k, None, x.requires_grad_()), v).square().sum(), x)
        assert (gradient[:, 0] == 0).all()
        assert (gradient[:, 1:] != 0).all()
