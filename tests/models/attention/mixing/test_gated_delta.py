"""Gated DeltaNet and DeltaNet."""

from typing import cast

import pytest
import torch
import torch.nn.functional as F

from models.attention.mixing.base import Inputs
from models.attention.mixing.gated_delta import Delta
from tests.models.attention.mixing.helpers import D, H, K, T, build, inputs, mixing, qkv
from tests.models.attention.mixing.linear_helpers import fixture

KNOBS = {"gate": "false", "taps": "2"}
PARAMETERS = D * D + 2 * D * H + 2 * H + K + 3 * 4 * D


def drawn(**changes: bool | int) -> Delta:
    rule = cast(Delta, build("gated_delta", **changes))
    with torch.no_grad():
        rule.draw(torch.Generator().manual_seed(0))
    return rule


class TestDelta:
    def test_vector(self) -> None:
        """One head without gates and convolutions, b = 1/2 as of zero inputs, unit keys; by hand.

        S_1 = [[.5, 0], [0, 0]], S_2 adds [[0, 0], [0, .5]]; the third key, [1, 1] / sqrt 2, recalls
        [.353553, .353553], so b k (v - that)^T = [.353553, .353553] (x) [1.646447, -1.353553] is added.
        """
        rule = cast(Delta, build("gated_delta", heads=1, head_dim=2, scale=1.0, gate=False, taps=0))
        q, k, v = fixture()
        found = rule.mixed(Inputs(q, k, None, torch.zeros(1, 3, 2)), v)[0, 0].detach()
        unit_q = F.normalize(q[0, 0], dim=-1)
        state = torch.tensor([[0.5, 0.0], [0.0, 0.0]])
        expected = [unit_q[0] @ state]
        state = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
        expected.append(unit_q[1] @ state)
        state = state + 0.353553 * torch.tensor([[1.646447, -1.353553], [1.646447, -1.353553]])
        expected.append(unit_q[2] @ state)
        torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("taps", [0, 4])
    @pytest.mark.parametrize("gate", [False, True])
    def test_both_paths(self, taps: int, gate: bool) -> None:
        rule, (q, k, v), x = drawn(gate=gate, taps=taps), qkv(), inputs()
        given = Inputs(q, k, None, x)
        torch.testing.assert_close(
            rule(given, v), rule.finish(rule.weights(given) @ rule.values(v, x), x), atol=1e-5, rtol=1e-4
        )

    def test_a_full_write_recalls_its_value(self) -> None:
        """b = 1: the state returns v for the key just written, whatever was there before."""
        rule, (_, k, v), x = drawn(gate=False, taps=0), qkv(), torch.zeros(3, T, D)
        x[..., 0] = 100.0
        with torch.no_grad():
            rule.strength.linear.weight.zero_()
            rule.strength.linear.weight[:, 0] = 1.0
        torch.testing.assert_close(rule.mixed(Inputs(k, k, None, x), v), rule.scale * v, atol=1e-4, rtol=1e-3)

    def test_decay(self) -> None:
        rule, x = drawn(), inputs()
        assert rule.forget is not None
        assert rule.rates is not None
        logits = x @ rule.forget.linear.weight.T + rule.rates.step_bias
        expected = -(rule.rates.log_rate.exp() * F.softplus(logits)).mT
        torch.testing.assert_close(rule.log_decay(Inputs(*qkv()[:2], None, x)), expected)

    def test_start(self) -> None:
        """A in (0, 16) and steps in (0.001, 0.1); weight decay skips both."""
        rates = cast(Delta, build("gated_delta", heads=200, head_dim=2)).rates
        assert rates is not None
        with torch.no_grad():
            rates.draw(torch.Generator().manual_seed(0))
        rate, step = rates.log_rate.exp(), F.softplus(rates.step_bias)
        assert 0 < rate.min() < 1
        assert 15 < rate.max() < 16
        assert 0.001 <= step.min() < 0.002
        assert 0.05 < step.max() <= 0.1
        assert 0.008 < step.log().mean().exp() < 0.012
        assert not rates.decays

    def test_convolutions_reach_back_three_tokens(self) -> None:
        rule, (q, k, _), x = drawn(), qkv(), inputs()
        before = rule.features(Inputs(q, k, None, x))
        q, k = q.clone(), k.clone()
        q[:, :, 5] += 1.0
        k[:, :, 5] += 1.0
        for one, other in zip(before, rule.features(Inputs(q, k, None, x)), strict=True):
            changed = (one - other).abs().amax((0, 1, 3)) > 1e-6
            assert changed.tolist() == [5 <= t <= 8 for t in range(T)]

    def test_outputs_do_not_depend_on_the_length_of_keys(self) -> None:
        rule, (q, k, v), x = mixing("gated_delta"), qkv(), inputs()
        with torch.no_grad():
            rule.query, rule.key = torch.nn.Identity(), torch.nn.Identity()
        torch.testing.assert_close(
            rule(Inputs(9 * q, 5 * k, None, x), v), rule(Inputs(q, k, None, x), v), atol=1e-4, rtol=1e-3
        )
