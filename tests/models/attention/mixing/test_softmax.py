"""Softmax attention against vectors, by hand in float64."""

import pytest
import torch

from models.attention.mixing.base import Inputs, MixingRule
from tests.models.attention.mixing.helpers import (
    ENTROPIES,
    LOGITS,
    OUTPUTS,
    VALUES,
    WEIGHTS,
    B,
    H,
    T,
    alibi,
    build,
    mixing,
    qkv,
)

KNOBS: dict[str, str] = {}


class TestSoftmax:
    def rule_and_inputs(self) -> tuple[MixingRule, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Zero queries, so that the logits are the bias."""
        rule = build("softmax", heads=1, head_dim=2, scale=2**-0.5, context=4)
        return rule, torch.zeros(1, 1, 4, 2), torch.tensor(VALUES)[None, None], torch.tensor([LOGITS])

    def test_weights(self) -> None:
        rule, zero, _, logits = self.rule_and_inputs()
        torch.testing.assert_close(
            rule.weights(Inputs(zero, zero, logits))[0, 0], torch.tensor(WEIGHTS), atol=1e-6, rtol=0
        )

    def test_outputs(self) -> None:
        rule, zero, v, logits = self.rule_and_inputs()
        torch.testing.assert_close(rule(Inputs(zero, zero, logits), v)[0, 0], torch.tensor(OUTPUTS), atol=1e-6, rtol=0)

    def test_entropies(self) -> None:
        rule, zero, _, logits = self.rule_and_inputs()
        torch.testing.assert_close(
            rule.entropy(Inputs(zero, zero, logits))[0, 0], torch.tensor(ENTROPIES), atol=1e-6, rtol=0
        )
        assert float(rule.watch(Inputs(zero, zero, logits))["entropy"]) == pytest.approx(2.185828 / 4, abs=1e-6)

    def test_three_tokens_of_dimension_two(self) -> None:
        """Weights and entropies of three tokens of dimension 2, fused (no bias) and explicit."""
        q = torch.tensor([[[[1.0, -1], [0.5, 2], [-1, 1]]]])
        k = torch.tensor([[[[1.0, 0], [0, 1], [1, 1]]]])
        v = torch.tensor([[[[1.0, 0], [0, 1], [2, -1]]]])
        rule = build("softmax", heads=1, head_dim=2, scale=2**-0.5, context=3)
        expected = torch.tensor([[1, 0], [0.257183, 0.742817], [0.708020, 0.291980]])
        torch.testing.assert_close(rule(Inputs(q, k), v)[0, 0], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close((rule.weights(Inputs(q, k)) @ v)[0, 0], expected, atol=1e-6, rtol=0)
        entropies = torch.tensor([0, 0.570090, 0.950537])
        torch.testing.assert_close(rule.entropy(Inputs(q, k))[0, 0], entropies, atol=1e-6, rtol=0)

    def test_rows_sum_to_one_and_the_first_is_the_first_value(self) -> None:
        rule, (q, k, v) = mixing("softmax"), qkv()
        torch.testing.assert_close(rule.weights(Inputs(q, k)).sum(-1), torch.ones(B, H, T))
        torch.testing.assert_close(rule(Inputs(q, k), v)[:, :, 0], v[:, :, 0])

    @pytest.mark.parametrize("biased", [False, True])
    def test_gradcheck_in_float64(self, biased: bool) -> None:
        rule, bias = mixing("softmax", context=4), alibi(4) if biased else None
        inputs = [x[:1].requires_grad_() for x in qkv(4, torch.float64)]
        torch.autograd.gradcheck(lambda q, k, v: rule(Inputs(q, k, bias), v), inputs)
