"""Soft-capped logits."""

import math

import pytest
import torch

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import LOGITS, WEIGHTS, H, K, T, alibi, build, mixing, one_dimensional, qkv

KNOBS: dict[str, str] = {"cap": "0.5"}


class TestSoftcap:
    def test_vectors(self) -> None:
        """cap tanh(s / cap), then softmax; by hand, in float64."""
        row = one_dimensional("softcap", [-0.3, 0.7, 1.5, 0.0], cap=1.0)
        torch.testing.assert_close(row, torch.tensor([0.123524, 0.302511, 0.408666, 0.165298]), atol=1e-6, rtol=0)
        capped = torch.tensor([9.868766, 38.079708, 48.201379, -49.966465])
        row = one_dimensional("softcap", [10.0, 50, 100, -200])
        torch.testing.assert_close(row, capped.softmax(-1), atol=1e-6, rtol=1e-4)

    @pytest.mark.parametrize("biased", [False, True])
    def test_a_large_cap_is_softmax(self, biased: bool) -> None:
        (q, k, v), bias = qkv(), alibi() if biased else None
        rule = build("softcap", heads=H, head_dim=K, scale=K**-0.5, context=T, cap=1e4)
        torch.testing.assert_close(
            rule.weights(Inputs(q, k, bias)), mixing("softmax").weights(Inputs(q, k, bias)), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            rule(Inputs(q, k, bias), v), mixing("softmax")(Inputs(q, k, bias), v), atol=1e-5, rtol=1e-5
        )

    def test_logits_are_bounded_by_the_cap(self) -> None:
        """Of two keys with products of +-1e6 the odds are exp(2 cap), not infinite."""
        low, high = one_dimensional("softcap", [-1e6, 1e6], cap=3.0)
        assert math.log(high / low) == pytest.approx(6.0, rel=1e-5)

    def test_bias_comes_after_the_cap(self) -> None:
        rule = build("softcap", heads=1, head_dim=2, scale=1.0, context=4, cap=0.01)
        weights = rule.weights(Inputs(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), torch.tensor([LOGITS])))
        torch.testing.assert_close(weights[0, 0], torch.tensor(WEIGHTS), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("s", [0.1, 4.0, 20.0])
    def test_gradient_fades_above_the_cap(self, s: float) -> None:
        """dw/ds = w (1 - w) (1 - tanh(s / cap)^2) for two keys, the other's product at 0."""
        k = torch.tensor([0.0, s])[None, None, :, None].requires_grad_()
        rule = build("softcap", heads=1, head_dim=1, scale=1.0, context=2, cap=5.0)
        w = rule.weights(Inputs(torch.ones_like(k), k))[0, 0, 1, 1]
        (gradient,) = torch.autograd.grad(w, k)
        weight = 1 / (1 + math.exp(-5 * math.tanh(s / 5)))
        expected = weight * (1 - weight) * (1 - math.tanh(s / 5) ** 2)
        assert gradient[0, 0, 1, 0].item() == pytest.approx(expected, rel=1e-3)

    @pytest.mark.parametrize("biased", [False, True])
    def test_the_probes_of_logits_are_before_the_cap(self, biased: bool) -> None:
        (q, k, _), bias = qkv(), alibi() if biased else None
        capped, plain = (mixing(name).watch(Inputs(1e3 * q, k, bias)) for name in ("softcap", "softmax"))
        assert plain["logit_max"].min() > 1e2
        for name in ("logit_max", "q_norm", "k_norm", "cosine_mean", "cosine_of_max_pair"):
            assert torch.equal(capped[name], plain[name]), name
        assert (capped["entropy"] > plain["entropy"] + 1e-3).all()
