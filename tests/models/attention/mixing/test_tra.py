"""Threshold relative attention."""

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs
from models.attention.mixing.tra import ThresholdRelative
from models.probes import causal
from tests.conftest import randn, tiny
from tests.models.attention.mixing.helpers import LOGITS, B, D, H, T, build, inputs, layer, mixing, output, qkv

KNOBS: dict[str, str] = {}
PARAMETERS = D * H + H
BUT = {"test_bf16_autocast_stays_close_to_fp32": "rounding takes logits near zero over the threshold; see below"}
GATES = [0.0, -1, 1, 0.5]


def of_logits(logits: list[list[float]], gates: list[float]) -> torch.Tensor:
    """The weights of one head, the logits of its gates the first channel of the input."""
    rule = build("tra", heads=1, head_dim=2)
    assert isinstance(rule, ThresholdRelative)
    x = torch.zeros(1, len(gates), 2)
    x[..., 0] = torch.tensor(gates)
    with torch.no_grad():
        rule.gate.linear.weight.copy_(torch.tensor([[1.0, 0]]))
        return rule.of_logits(causal(torch.tensor([[logits]])), x)[0, 0]


class TestThresholdRelative:
    def test_vectors(self) -> None:
        weights = of_logits(LOGITS, GATES)
        torch.testing.assert_close(weights[2], torch.tensor([0.107815, 0.892185, 0, 0]), atol=1e-6, rtol=0)
        torch.testing.assert_close(weights[3], torch.tensor([0, 0.218560, 0.781440, 0]), atol=1e-6, rtol=0)
        assert torch.equal(weights[:2, :2], torch.tensor([[1.0, 0], [1, 0]]))

    def test_keys_of_no_positive_logit_have_no_weight(self) -> None:
        (q, k, _), x = qkv(), inputs()
        kept = (q @ k.mT).tril() > 0
        weights = mixing("tra").weights(Inputs(q, k, None, x))
        assert torch.equal(weights > 0, kept)
        torch.testing.assert_close(weights.sum(-1), kept.any(-1).float())
        assert (~kept.any(-1)).any(), "no row without kept keys was tested"

    def test_open_gates_are_softmax_over_positive_logits(self) -> None:
        weights = of_logits(LOGITS, [40.0] * 4)
        expected = torch.tensor([0.0, 0.7, 1.5]).exp() * torch.tensor([0.0, 1, 1])
        torch.testing.assert_close(weights[3, :3], expected / expected.sum(), atol=1e-6, rtol=0)

    def test_what_is_dropped_leaves_other_weights_alone(self) -> None:
        """Two irrelevant keys between the two of a row, or none."""
        with_two = of_logits([[0.5, 0, 0, 0], [0.0] * 4, [0.0] * 4, [1.2, -3.0, 0.0, 0.4]], GATES)[3]
        without = of_logits([[0.5, 0], [1.2, 0.4]], [0.0, 0.5])[1]
        torch.testing.assert_close(with_two[[0, 3]], without)
        assert (with_two[1:3] == 0).all()

    def test_odds_fall_with_the_count_of_kept_keys(self) -> None:
        """sigmoid(0) = 1/2 a key: with equal logits the weights are 1/2, 1/4, 1/8 ... of the nearest on."""
        weights = of_logits([[1.0] * 4] * 4, [0.0] * 4)[3]
        torch.testing.assert_close(weights, torch.tensor([1.0, 2, 4, 8]) / 15, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("length", [1, T])
    def test_rows_without_keys_are_zero_with_finite_gradients(self, length: int) -> None:
        q, k, v = qkv(length)
        q, k = -k.abs(), k.abs()
        x, rule = inputs(length).requires_grad_(), mixing("tra")
        outputs = rule(Inputs(q.requires_grad_(), k.requires_grad_(), None, x), v.requires_grad_())
        assert torch.equal(outputs, torch.zeros_like(v))
        for gradient in torch.autograd.grad(outputs.sum(), (q, k, v, x), allow_unused=True):
            assert gradient is None or gradient.isfinite().all()
        entropy = rule.entropy(Inputs(q, k, None, x))
        assert torch.equal(entropy, torch.zeros(B, H, length))

    def test_queries_that_start_at_zero_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"parametrization=mup_full starts queries at zero, .*: use"):
            tiny("attention=tra", "parametrization=mup_full")

    @pytest.mark.parametrize("position", ["rope", "alibi"])
    def test_bf16_autocast_stays_close_but_for_rows_whose_keys_change(self, position: str) -> None:
        attention, x_BTD = layer("tra", position), randn(B, T, D)
        expected = output(attention, x_BTD)
        with torch.autocast("cpu", torch.bfloat16):
            found = output(attention, x_BTD)
        assert found.dtype == torch.bfloat16
        found.float().square().mean().backward()
        far = (found.float() - expected).detach().abs().amax(-1) > 0.03 * expected.detach().abs().max()
        assert far.float().mean() < 0.1
        assert all(p.grad is None or p.grad.isfinite().all() for p in attention.parameters())
