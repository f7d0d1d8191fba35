"""Gated linear attention."""

from typing import cast

import pytest
import torch

from models.attention.mixing.base import Inputs
from models.attention.mixing.gla import GatedLinearAttention
from tests.models.attention.mixing.helpers import D, H, K, T, alibi, build, inputs, mixing, qkv
from tests.models.attention.mixing.linear_helpers import FIXTURE, fixture

KNOBS = {"rank": "4", "normalizer": "1"}
MUP = ["attention.rank=null"]
PARAMETERS = D * D + 2 * D * 16 + D + K


def with_decays(log_decay: list[list[float]]) -> tuple[GatedLinearAttention, torch.Tensor]:
    """One head of the fixture with these log decays [T][K]; the input holds their logits."""
    rule = cast(GatedLinearAttention, build("gla", heads=1, head_dim=2, scale=1.0, rank=None, normalizer=1.0))
    with torch.no_grad():
        rule.forget.expand.weight.copy_(torch.eye(2))
    return rule, torch.logit(torch.tensor(log_decay, dtype=torch.float64).exp()).float()[None]


class TestGLA:
    def test_vector(self) -> None:
        """S = [[1, 0], [0, 0]], then its rows times 0.5 and 0.25 plus [[0, 0], [0, 1]], and so on; by hand."""
        rule, x = with_decays([[-1.0, -1.0], [-0.693147181, -1.386294361], [-0.287682072, -0.223143551]])
        q, k, v = fixture()
        expected = torch.tensor([[1.0, 0.0], [0.25, 2.0], [-0.375, 0.8]])
        torch.testing.assert_close(rule.mixed(Inputs(q, k, None, x), v)[0, 0], expected, atol=1e-5, rtol=0)

    def test_open_gates_are_linear_attention(self) -> None:
        rule, x = with_decays([[-1e-7, -1e-7]] * 3)
        q, k, v = fixture()
        expected = (FIXTURE[0] @ FIXTURE[1].mT).tril() @ FIXTURE[2]
        torch.testing.assert_close(rule.mixed(Inputs(q, k, None, x), v)[0, 0], expected, atol=1e-5, rtol=0)

    def test_log_decays_are_those_of_the_gate(self) -> None:
        rule, x = cast(GatedLinearAttention, mixing("gla")), inputs()
        squeeze, expand = rule.forget.squeeze.get_parameter("weight"), rule.forget.expand.weight
        logits = x @ squeeze.T @ expand.T + rule.forget.bias
        expected = torch.nn.functional.logsigmoid(logits).unflatten(-1, (H, K)).transpose(1, 2) / 16
        torch.testing.assert_close(rule.log_decay(Inputs(*qkv()[:2], None, x)), expected)

    def test_norm_and_gate(self) -> None:
        rule, (_, _, v), x = cast(GatedLinearAttention, mixing("gla")), qkv(), inputs()
        assert rule.output.gate is not None
        gate = torch.nn.functional.silu(x @ rule.output.gate.weight.T).unflatten(-1, (H, K)).transpose(1, 2)
        expected = gate * v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt() * rule.output.norm.weight
        torch.testing.assert_close(rule.finish(v, x), expected)

    def test_alibi_multiplies_the_weights(self) -> None:
        rule, (q, k, _), x, bias = mixing("gla"), qkv(), inputs(), alibi()
        assert bias is not None
        expected = rule.weights(Inputs(q, k, None, x)) * bias.tril().exp()
        torch.testing.assert_close(rule.weights(Inputs(q, k, bias, x)), expected)

    @pytest.mark.parametrize("t", [3, T - 1])
    def test_a_closed_gate_forgets_all_before_it(self, t: int) -> None:
        rule, (q, k, _), x = cast(GatedLinearAttention, build("gla", rank=None, normalizer=1.0)), qkv(), inputs()
        with torch.no_grad():
            rule.forget.expand.weight.zero_()
            rule.forget.expand.weight[:, 0] = 1.0
        x[:, t, 0] = -1e4
        weights = rule.weights(Inputs(q, k, None, x))
        assert (weights[:, :, t:, :t] == 0).all()
        assert (weights[:, :, t - 1, :t] != 0).any()
