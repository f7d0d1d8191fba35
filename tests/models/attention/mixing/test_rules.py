"""Every mixing rule in the registry, alone and inside the attention layer.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

import pytest
import torch

from models.attention.mixing import base as mixing_rules
from models.attention.mixing.base import ATTENTION, Inputs, MixingRule
from models.probes import weight_stats
from tests.conftest import randn
from tests.models.attention.mixing.helpers import (
    RULES,
    B,
    D,
    H,
    K,
    T,
    alibi,
    inputs,
    layer,
    mixing,
    output,
    own_tests,
    qkv,
)

every_rule = pytest.mark.parametrize("rule", RULES)


@pytest.fixture(autouse=True)
def _but(request: pytest.FixtureRequest) -> None:
    """Skips a test that can't hold for a rule, with the reason that the rule's tests give."""
    rule = getattr(request.node, "callspec", None) and request.node.callspec.params.get("rule")
    reason = rule and getattr(own_tests(rule), "BUT", {}).get(request.node.originalname)
    if reason:
        pytest.skip(reason)


@every_rule
@pytest.mark.parametrize("position", ["rope", "alibi"])
class TestCausality:
    def test_a_token_does_not_change_outputs_before_it(self, rule: str, position: str) -> None:
        attention, x_BTD = layer(rule, position), randn(B, T, D)
        before = output(attention, x_BTD)
        for t in (1, 5, T - 1):
            changed_BTD = x_BTD.clone()
            changed_BTD[:, t] += randn(B, D, seed=7)
            after = output(attention, changed_BTD)
            torch.testing.assert_close(after[:, :t], before[:, :t], atol=1e-6, rtol=0)
            assert (after[:, t] - before[:, t]).abs().max() > 1e-3, t

    def test_no_gradient_to_the_future(self, rule: str, position: str) -> None:
        x_BTD = randn(B, T, D).requires_grad_()
        outputs = output(layer(rule, position), x_BTD)
        for t in (1, 5, T - 1):
            (gradient,) = torch.autograd.grad(outputs[:, :t].square().sum(), x_BTD, retain_graph=True)
            assert (gradient[:, t:] == 0).all(), t
            assert gradient[:, :t].abs().max() > 0, t

    def test_a_prefix_gives_the_same_outputs(self, rule: str, position: str) -> None:
        attention, x_BTD = layer(rule, position), randn(B, T, D)
        whole = output(attention, x_BTD)
        for t in (1, 2, 7, T - 1):
            expected = whole[:, :t]
            # Outputs of rules without a row sum can be large, and some are differences of numbers that are.
            atol = 2e-6 * max(0.5, expected.abs().max().item())
            torch.testing.assert_close(output(attention, x_BTD[:, :t]), expected, atol=atol, rtol=0)


@every_rule
def test_large_logits_leave_no_gradient_if_a_rule_saturates(rule: str) -> None:
    """Lengths times the gradient of the weights' shares, at logits of the order of 1e6."""
    mix = mixing(rule)
    q_BHTK, k_BHTK = (1e3 * randn(B, H, T, mix.key_dim or K, seed=seed) for seed in (1, 2))
    weights_BHTT = mix.weights(Inputs(q_BHTK.requires_grad_(), k_BHTK, None, randn(B, T, D))).abs()
    share_BHTT = weights_BHTT / weights_BHTT.sum(-1, keepdim=True).clamp_min(1e-30)
    (gradient,) = torch.autograd.grad((share_BHTT * randn(B, H, T, T)).sum(), q_BHTK)
    moved = float(gradient.norm() * q_BHTK.detach().norm()) / (B * H * T)
    assert moved < 1e-6 if ATTENTION.choices[rule].saturates else moved > 0.1


@every_rule
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_batch_rows_do_not_interact(rule: str, position: str) -> None:
    attention, x_BTD = layer(rule, position).eval(), randn(B, T, D)
    changed_BTD = x_BTD.clone()
    changed_BTD[1] = randn(T, D, seed=9)
    before, after = output(attention, x_BTD), output(attention, changed_BTD)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], atol=1e-6, rtol=0)
    permuted = output(attention, x_BTD[[2, 0, 1]])
    torch.testing.assert_close(permuted, before[[2, 0, 1]], atol=1e-6, rtol=0)


@every_rule
@pytest.mark.parametrize("position", ["rope", "alibi"])
@pytest.mark.parametrize("length", [1, T])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_finite_forward_and_backward(rule: str, position: str, length: int, scale: float) -> None:
    """At 1e3 the logits are of the order of 1e6; Wortsman et al. 2023, Fig. 9, saw divergence above 1e4."""
    attention, x_BTD = layer(rule, position), (scale * randn(B, length, D)).requires_grad_()
    outputs = output(attention, x_BTD)
    outputs.square().mean().backward()
    assert outputs.isfinite().all()
    assert x_BTD.grad is not None
    assert x_BTD.grad.isfinite().all()
    for name, parameter in attention.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@every_rule
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_bf16_autocast_stays_close_to_fp32(rule: str, position: str) -> None:
    attention, x_BTD = layer(rule, position), randn(B, T, D)
    expected = output(attention, x_BTD)
    with torch.autocast("cpu", torch.bfloat16):
        found = output(attention, x_BTD)
    assert found.dtype == torch.bfloat16
    found.float().square().mean().backward()
    # bf16 has 8 bits: 2^-8 = 0.004 of the size of the outputs, a few times over.
    torch.testing.assert_close(found.float(), expected, atol=0.03 * expected.detach().abs().max().item(), rtol=0)
    assert all(p.grad is None or p.grad.isfinite().all() for p in attention.parameters())


@every_rule
def test_parameter_count(rule: str) -> None:
    own = getattr(own_tests(rule), "PARAMETERS", 0)
    assert sum(p.numel() for p in layer(rule).parameters()) == 4 * D * D + own


@every_rule
@pytest.mark.parametrize("biased", [False, True])
class TestPaths:
    def test_fast_path_is_the_explicit_one(self, rule: str, biased: bool) -> None:
        made, (q, k, v), bias, x = mixing(rule), qkv(), alibi() if biased else None, inputs()
        expected = made.finish(made.weights(Inputs(q, k, bias, x)) @ made.values(v, x), x)
        torch.testing.assert_close(made(Inputs(q, k, bias, x), v), expected, atol=1e-5, rtol=1e-5)

    def test_gradients_of_both_paths_agree(self, rule: str, biased: bool) -> None:
        made, bias = mixing(rule), alibi() if biased else None
        leaves = [x.requires_grad_() for x in (*qkv(), inputs())]
        q, k, v, x = leaves
        expected = made.finish(made.weights(Inputs(q, k, bias, x)) @ made.values(v, x), x)
        outputs = made(Inputs(q, k, bias, x), v), expected
        # The input matters to some rules only, the keys not to all: what has no gradient has none in both.
        fast, explicit = (torch.autograd.grad(y.sin().sum(), leaves, allow_unused=True) for y in outputs)
        for one, other in zip(fast, explicit, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)

    def test_weights_are_fp32_and_zero_above_the_diagonal(self, rule: str, biased: bool) -> None:
        made, (q, k, _), bias = mixing(rule), qkv(dtype=torch.bfloat16), alibi() if biased else None
        weights = made.weights(Inputs(q, k, bias, inputs(dtype=torch.bfloat16)))
        assert weights.dtype == torch.float32
        assert weights.shape == (B, H, T, T)
        assert (weights.triu(1) == 0).all()

    def test_autocast_leaves_weights_and_probes_exact(self, rule: str, biased: bool) -> None:
        """Logits that pass 1e4 have steps of 64 in bf16; the probes are there to follow them."""
        made, (q, k, _), bias, x = mixing(rule).eval(), qkv(), alibi() if biased else None, inputs()
        expected, probes = made.weights(Inputs(q, k, bias, x)), made.watch(Inputs(q, k, bias, x))
        with torch.autocast("cpu", torch.bfloat16):
            found, found_probes = made.weights(Inputs(q, k, bias, x)), made.watch(Inputs(q, k, bias, x))
        torch.testing.assert_close(found, expected, atol=0, rtol=0)
        torch.testing.assert_close(found_probes, probes, atol=0, rtol=0)

    def test_probes_have_one_value_a_head(self, rule: str, biased: bool) -> None:
        made, (q, k, _), bias = mixing(rule), qkv(), alibi() if biased else None
        probes = made.watch(Inputs(q.requires_grad_(), k, bias, inputs()))
        assert set(probes) >= {"logit_max", "q_norm", "k_norm", "cosine_mean", "cosine_of_max_pair", "entropy"}
        for name, value in probes.items():
            assert value.shape == (() if name == "diversity" else (H,)), name
            assert value.dtype == torch.float32, name
            assert not value.requires_grad, name
            assert value.isfinite().all(), name


@every_rule
@pytest.mark.parametrize("biased", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradcheck(rule: str, biased: bool) -> None:
    """Steps of 1e-2: the rules work in fp32 inside, whatever the dtype of their inputs."""
    made, bias, x = mixing(rule, context=4).eval(), alibi(4) if biased else None, inputs(4)[:1]
    leaves = [x[:1].requires_grad_() for x in qkv(4, torch.float64)]
    torch.autograd.gradcheck(lambda q, k, v: made(Inputs(q, k, bias, x), v), leaves, eps=1e-2, atol=2e-3, rtol=2e-3)


@every_rule
@pytest.mark.parametrize("biased", [False, True])
def test_long_sequences_have_the_entropy_of_short_ones(
    rule: str, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind LONGEST no other probe of the weights is there."""
    made, (q, k, _), bias, x = mixing(rule).eval(), qkv(), alibi() if biased else None, inputs()
    probes = made.watch(Inputs(q, k, bias, x))
    monkeypatch.setattr(mixing_rules, "LONGEST", T - 1)
    long = made.watch(Inputs(q, k, bias, x))
    assert probes.keys() - long.keys() == weight_stats(torch.ones(1, 1, 1, 1)).keys() - {"entropy"}
    torch.testing.assert_close(long, {name: probes[name] for name in long}, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rule", [name for name in RULES if type(mixing(name)).forward is MixingRule.forward])
@pytest.mark.parametrize("biased", [False, True])
def test_many_weights_are_made_for_one_sequence_at_once(
    rule: str, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outputs, gradients and probes of all at once, and no T x T matrix kept for the backward pass."""
    made, leaves = mixing(rule).eval(), [x.requires_grad_() for x in qkv()]
    (q, k, v), bias, x = leaves, alibi() if biased else None, inputs()
    expected, probes, entropies = (
        made(Inputs(q, k, bias, x), v),
        made.watch(Inputs(q, k, bias, x)),
        made.entropy(Inputs(q, k, bias, x)),
    )
    gradients = torch.autograd.grad(expected.sin().sum(), leaves)
    kept = []
    monkeypatch.setattr(mixing_rules, "SCORES_AT_ONCE", 2 * H * T * T - 1)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        found = made(Inputs(q, k, bias, x), v)
    assert [shape for shape in kept if len(shape) == 4 and shape[-2:] == (T, T)] == []
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(made.watch(Inputs(q, k, bias, x)), probes)
    torch.testing.assert_close(made.entropy(Inputs(q, k, bias, x)), entropies)
    for one, other in zip(torch.autograd.grad(found.sin().sum(), leaves), gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_rule_can_be_registered_once() -> None:
    with pytest.raises(ValueError, match="attention=softmax is registered twice"):
        ATTENTION.register(ATTENTION.choices["softmax"])


def test_exceptions_are_of_tests_that_exist() -> None:
    here = {name for name in globals() if name.startswith("test_")}
    here |= {name for group in (TestCausality, TestPaths) for name in vars(group) if name.startswith("test_")}
    assert {name for rule in RULES for name in getattr(own_tests(rule), "BUT", {})} <= here
