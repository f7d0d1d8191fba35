"""Affine-scaled attention."""

from typing import cast

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.affine_scaled import AffineScaled
from models.attention.mixing.base import Inputs
from tests.conftest import tiny
from tests.models.attention.mixing import test_rules
from tests.models.attention.mixing.helpers import LOGITS, B, D, H, T, build, inputs, layer, mixing, qkv

KNOBS = {"rho": "0.5", "count": "visible"}
PARAMETERS = D * H
MOVES = "each call in training moves the average; held in evaluation, see below"
BUT = {
    "test_a_token_does_not_change_outputs_before_it": MOVES,
    "test_a_prefix_gives_the_same_outputs": MOVES,
    "test_bf16_autocast_stays_close_to_fp32": MOVES,
    "test_gradients_of_both_paths_agree": MOVES,
}


def test_compiled_gradients_are_refused() -> None:
    message = (
        "compile=true computes wrong gradients for attention=affine_scaled: use compile=false or attention=softmax"
    )
    for given in (["attention=affine_scaled"], ["attention.pattern=[self,affine_scaled]", "model.depth=2"]):
        assert tiny(*given).compile is False
        with pytest.raises(ConfigError, match=message):
            tiny(*given, "compile=true")


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

    def test_the_average_follows_training_batches(self) -> None:
        """a (1 - 0.9^t) after t batches whose gates are all a; neither weights, probes nor evaluation move it."""
        rule = cast(AffineScaled, build("affine_scaled"))
        (q, k, v), x = qkv(), inputs()
        with torch.no_grad():
            rule.gate.linear.weight.zero_()
        for t in range(1, 6):
            rule(Inputs(q, k, None, x), v)
            torch.testing.assert_close(rule.average_H, torch.full((H,), 0.5 * (1 - 0.9**t)))
        before = rule.average_H.clone()
        rule.weights(Inputs(q, k, None, x))
        rule.watch(Inputs(q, k, None, x))
        rule.eval()(Inputs(q, k, None, x), v)
        assert torch.equal(rule.average_H, before)
        assert "average_H" in rule.state_dict()

    def test_a_batch_is_mixed_with_the_average_before_it(self) -> None:
        rule, (q, k, v), x = mixing("affine_scaled"), qkv(), inputs()
        expected = rule.weights(Inputs(q, k, None, x)) @ v
        torch.testing.assert_close(rule(Inputs(q, k, None, x), v), expected, atol=1e-5, rtol=1e-5)
        assert (rule.weights(Inputs(q, k, None, x)) @ v - expected).abs().max() > 1e-3

    def test_clipped_gates_have_no_gradient(self) -> None:
        rule, (q, k, v), x = by_hand("context"), (x[:, :1, :4, :1] for x in qkv()), torch.tensor([GATES] * B)[..., None]
        (gradient,) = torch.autograd.grad(rule(Inputs(q, k, None, x.requires_grad_()), v).square().sum(), x)
        assert (gradient[:, 0] == 0).all()
        assert (gradient[:, 1:] != 0).all()


@pytest.fixture
def _in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_rules, "layer", lambda *args: layer(*args).eval())
    monkeypatch.setattr(test_rules, "mixing", lambda *args: mixing(*args).eval())


@pytest.mark.usefixtures("_in_evaluation")
class TestInEvaluation:
    """What training batches that move the average keep from holding."""

    @pytest.mark.parametrize("t", [1, 5, T - 1])
    @pytest.mark.parametrize("position", ["rope", "alibi"])
    def test_causality(self, position: str, t: int) -> None:
        test_rules.TestCausality().test_a_token_does_not_change_outputs_before_it("affine_scaled", position, t)
        test_rules.TestCausality().test_a_prefix_gives_the_same_outputs("affine_scaled", position, t)

    @pytest.mark.parametrize("position", ["rope", "alibi"])
    def test_bf16_autocast(self, position: str) -> None:
        test_rules.test_bf16_autocast_stays_close_to_fp32("affine_scaled", position)

    @pytest.mark.parametrize("biased", [False, True])
    def test_gradients_of_both_paths(self, biased: bool) -> None:
        test_rules.TestPaths().test_gradients_of_both_paths_agree("affine_scaled", biased)
