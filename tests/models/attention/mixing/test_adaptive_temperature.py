"""Adaptive temperature."""

import math

import pytest
import torch

from models.attention.mixing.adaptive_temperature import inverse_temperature
from models.attention.mixing.base import Inputs
from models.probes import weight_entropy
from tests.models.attention.mixing.helpers import (
    ENTROPIES,
    WEIGHTS,
    alibi,
    build,
    mixing,
    of_logits,
    one_dimensional,
    qkv,
)

KNOBS: dict[str, str] = {"in_training": "false"}
BUT = {
    "test_gradcheck": "beta is a constant of the backward pass: "
    "TestAdaptiveTemperature.test_gradient_is_that_at_a_fixed_temperature has the gradient",
}


class TestAdaptiveTemperature:
    def test_vectors(self) -> None:
        """beta of the last row 1.486226, of the others 1; in float64, by hand."""
        weights = of_logits("adaptive_temperature")
        expected = torch.tensor([*WEIGHTS[:3], [0.046517, 0.205622, 0.675209, 0.072652]])
        torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)
        beta = inverse_temperature(torch.tensor(ENTROPIES))
        torch.testing.assert_close(beta, torch.tensor([1, 1, 1, 1.486226]), atol=2e-6, rtol=0)

    def test_polynomial(self) -> None:
        """Of published coefficients, in float64: below 0.8486 and above 5.9445 nats it is under 1."""
        entropies = torch.tensor([0.5, 0.84, 1, 2, 3, 4.5, 5.5, 6])
        expected = torch.tensor([1, 1, 1.270, 2.099, 2.250, 2.419, 1.847, 1])
        torch.testing.assert_close(inverse_temperature(entropies), expected, atol=1e-3, rtol=0)

    @pytest.mark.parametrize("biased", [False, True])
    def test_it_only_sharpens(self, biased: bool) -> None:
        (q, k, _), bias = qkv(), alibi() if biased else None
        plain, sharp = (build(name).weights(Inputs(q, k, bias)) for name in ("softmax", "adaptive_temperature"))
        before, after = weight_entropy(plain), weight_entropy(sharp)
        assert (after <= before + 1e-6).all()
        assert (after[before > 1] < before[before > 1]).all()
        assert (before > 1).any()
        assert torch.equal(sharp[before <= 0.5], plain[before <= 0.5])
        # The largest weight is the same key's: a row of two can come out as 1 and 1, by rounding.
        assert (sharp.gather(-1, plain.argmax(-1, keepdim=True))[..., 0] == sharp.amax(-1)).all()

    def test_gradient_is_that_at_a_fixed_temperature(self) -> None:
        q, k, v = (x.requires_grad_() for x in qkv())
        entropy = build("softmax").entropy(Inputs(q, k)).detach()
        fixed = build("softmax")(Inputs(inverse_temperature(entropy)[..., None] * q, k), v)
        found = build("adaptive_temperature")(Inputs(q, k), v)
        gradients = (torch.autograd.grad(y.sin().sum(), (q, k, v)) for y in (found, fixed))
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("biased", [False, True])
    def test_entropy_is_that_of_the_weights(self, biased: bool) -> None:
        (q, k, _), bias, rule = qkv(), alibi() if biased else None, mixing("adaptive_temperature")
        expected = weight_entropy(rule.weights(Inputs(q, k, bias)))
        torch.testing.assert_close(rule.entropy(Inputs(q, k, bias)), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("biased", [False, True])
    def test_as_published_it_is_of_evaluation_alone(self, biased: bool) -> None:
        (q, k, v), bias = qkv(), alibi() if biased else None
        switch, through = build("adaptive_temperature", in_training=False), build("adaptive_temperature")
        plain = build("softmax")
        assert torch.equal(switch.train()(Inputs(q, k, bias), v), plain(Inputs(q, k, bias), v))
        assert torch.equal(switch.weights(Inputs(q, k, bias)), plain.weights(Inputs(q, k, bias)))
        assert torch.equal(switch.entropy(Inputs(q, k, bias)), plain.entropy(Inputs(q, k, bias)))
        assert torch.equal(switch.eval()(Inputs(q, k, bias), v), through.train()(Inputs(q, k, bias), v))
        assert torch.equal(switch.weights(Inputs(q, k, bias)), through.weights(Inputs(q, k, bias)))

    def test_uniform_rows_of_many_keys_are_left_alone(self) -> None:
        keys = torch.linspace(-0.01, 0.01, 400)
        row = one_dimensional("adaptive_temperature", keys.tolist())
        assert math.log(400) > 5.9445
        torch.testing.assert_close(row, keys.softmax(0), atol=1e-7, rtol=0)
