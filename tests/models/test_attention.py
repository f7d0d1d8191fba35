"""Every mixing rule in the registry, alone and inside the attention layer.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

import math

import pytest
import torch
from torch import nn

from conf.axis import import_all
from models.attention import mixing as mixing_rules
from models.attention.attention import Attention
from models.attention.mixing import ATTENTION, MixingRule
from models.positions import POSITION
from models.qk_norm import QK_NORM
from tests.conftest import choice, randn

import_all("models.attention")

RULES = sorted(ATTENTION.choices)
every_rule = pytest.mark.parametrize("rule", RULES)
B, H, T, K = 3, 2, 12, 8
D = H * K

# Parameters of a rule beyond those of the four projections, for H heads of dimension K and context T.
EXTRA_PARAMETERS = {"softmax": 0, "softcap": 0, "relu_squared": 0}


def mixing(rule: str, context: int = T) -> MixingRule:
    """The rule with its parameters moved off their start, so that a gate that starts closed is tested open."""
    made = choice(ATTENTION, rule).build(heads=H, head_dim=K, scale=K**-0.5, context=context, block=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return made


def layer(rule: str, position: str = "rope", qk_norm: str = "none") -> Attention:
    torch.manual_seed(0)
    positions = choice(POSITION, position).build(D, H, T)
    return Attention(D, H, choice(QK_NORM, qk_norm).build(heads=H, head_dim=K, context=T), positions, mixing(rule))


def qkv(length: int = T, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [randn(B, H, length, K, seed=s, dtype=dtype) for s in (1, 2, 3)]


def alibi(length: int = T) -> torch.Tensor | None:
    return choice(POSITION, "alibi").build(D, H, length).bias(length)


def output(attention: nn.Module, x_BTD: torch.Tensor) -> torch.Tensor:
    return attention(x_BTD)[0]


@every_rule
@pytest.mark.parametrize("position", ["rope", "alibi"])
class TestCausality:
    @pytest.mark.parametrize("t", [1, 5, T - 1])
    def test_a_token_does_not_change_outputs_before_it(self, rule: str, position: str, t: int) -> None:
        attention, x_BTD = layer(rule, position), randn(B, T, D)
        changed_BTD = x_BTD.clone()
        changed_BTD[:, t] += randn(B, D, seed=7)
        before, after = output(attention, x_BTD), output(attention, changed_BTD)
        torch.testing.assert_close(after[:, :t], before[:, :t], atol=1e-6, rtol=0)
        assert (after[:, t] - before[:, t]).abs().max() > 1e-3

    @pytest.mark.parametrize("t", [1, 5, T - 1])
    def test_no_gradient_to_the_future(self, rule: str, position: str, t: int) -> None:
        x_BTD = randn(B, T, D).requires_grad_()
        outputs = output(layer(rule, position), x_BTD)
        (gradient,) = torch.autograd.grad(outputs[:, :t].square().sum(), x_BTD)
        assert (gradient[:, t:] == 0).all()
        assert gradient[:, :t].abs().max() > 0

    @pytest.mark.parametrize("t", [1, 2, 7, T - 1])
    def test_a_prefix_gives_the_same_outputs(self, rule: str, position: str, t: int) -> None:
        attention, x_BTD = layer(rule, position), randn(B, T, D)
        torch.testing.assert_close(output(attention, x_BTD[:, :t]), output(attention, x_BTD)[:, :t], atol=1e-6, rtol=0)


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
    assert rule in EXTRA_PARAMETERS, f"write the number of parameters of {rule} into EXTRA_PARAMETERS"
    assert sum(p.numel() for p in layer(rule).parameters()) == 4 * D * D + EXTRA_PARAMETERS[rule]


@every_rule
@pytest.mark.parametrize("biased", [False, True])
class TestPaths:
    def test_fast_path_is_the_explicit_one(self, rule: str, biased: bool) -> None:
        made, (q, k, v), bias = mixing(rule), qkv(), alibi() if biased else None
        torch.testing.assert_close(made(q, k, v, bias), made.weights(q, k, bias) @ v, atol=1e-5, rtol=1e-5)

    def test_gradients_of_both_paths_agree(self, rule: str, biased: bool) -> None:
        made, inputs, bias = mixing(rule), [x.requires_grad_() for x in qkv()], alibi() if biased else None
        q, k, v = inputs
        fast = torch.autograd.grad(made(q, k, v, bias).sin().sum(), inputs)
        explicit = torch.autograd.grad((made.weights(q, k, bias) @ v).sin().sum(), inputs)
        for one, other in zip(fast, explicit, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)

    def test_weights_are_fp32_and_zero_above_the_diagonal(self, rule: str, biased: bool) -> None:
        made, (q, k, _), bias = mixing(rule), qkv(dtype=torch.bfloat16), alibi() if biased else None
        weights = made.weights(q, k, bias)
        assert weights.dtype == torch.float32
        assert weights.shape == (B, H, T, T)
        assert (weights.triu(1) == 0).all()

    def test_autocast_leaves_weights_and_probes_exact(self, rule: str, biased: bool) -> None:
        """Logits that pass 1e4 have steps of 64 in bf16; the probes are there to follow them."""
        made, (q, k, _), bias = mixing(rule), qkv(), alibi() if biased else None
        expected, probes = made.weights(q, k, bias), made.watch(q, k, bias)
        with torch.autocast("cpu", torch.bfloat16):
            found, found_probes = made.weights(q, k, bias), made.watch(q, k, bias)
        torch.testing.assert_close(found, expected, atol=0, rtol=0)
        torch.testing.assert_close(found_probes, probes, atol=0, rtol=0)

    def test_gradcheck(self, rule: str, biased: bool) -> None:
        """Steps of 1e-2: the rules work in fp32 inside, whatever the dtype of their inputs."""
        made, bias = mixing(rule, context=4), alibi(4) if biased else None
        inputs = [x[:1].requires_grad_() for x in qkv(4, torch.float64)]
        torch.autograd.gradcheck(lambda q, k, v: made(q, k, v, bias), inputs, eps=1e-2, atol=2e-3, rtol=2e-3)

    def test_probes_have_one_value_a_head(self, rule: str, biased: bool) -> None:
        made, (q, k, _), bias = mixing(rule), qkv(), alibi() if biased else None
        probes = made.watch(q.requires_grad_(), k, bias)
        assert set(probes) >= {"logit_max", "q_norm", "k_norm", "cosine_mean", "cosine_of_max_pair", "entropy"}
        for name, value in probes.items():
            assert value.shape == (H,), name
            assert value.dtype == torch.float32, name
            assert not value.requires_grad, name
            assert value.isfinite().all(), name


@pytest.mark.parametrize("rule", [name for name in RULES if type(mixing(name)).forward is MixingRule.forward])
@pytest.mark.parametrize("biased", [False, True])
def test_many_weights_are_made_for_one_sequence_at_once(
    rule: str, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outputs, gradients and entropies of all at once, and no T x T matrix kept for the backward pass."""
    made, inputs, bias = mixing(rule), [x.requires_grad_() for x in qkv()], alibi() if biased else None
    q, k, v = inputs
    expected, entropies = made(q, k, v, bias), made.entropy(q, k, bias)
    gradients = torch.autograd.grad(expected.sin().sum(), inputs)
    kept = []
    monkeypatch.setattr(mixing_rules, "SCORES_AT_ONCE", 2 * H * T * T - 1)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        found = made(q, k, v, bias)
    assert [shape for shape in kept if len(shape) == 4 and shape[-2:] == (T, T)] == []
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(made.entropy(q, k, bias), entropies)
    for one, other in zip(torch.autograd.grad(found.sin().sum(), inputs), gradients, strict=True):
        torch.testing.assert_close(one, other)


# Softmax of a fixed lower-triangular matrix of logits, its outputs and row entropies: in float64, by hand.
LOGITS = [[0.5, 0, 0, 0], [1, -0.5, 0, 0], [0.2, 2, -1, 0], [-0.3, 0.7, 1.5, 0]]
VALUES = [[1.0, 0], [0, 1], [1, 1], [-1, 2]]
WEIGHTS = [
    [1, 0, 0, 0], [0.817574, 0.182426, 0, 0], [0.136039, 0.822987, 0.040974, 0],
    [0.089946, 0.244498, 0.544141, 0.121414],
]  # fmt: skip
OUTPUTS = [[1, 0], [0.817574, 0.182426], [0.177013, 0.863961], [0.512673, 1.031468]]
ENTROPIES = [0, 0.475052, 0.562607, 1.148169]


class TestSoftmax:
    def rule_and_inputs(self) -> tuple[MixingRule, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Zero queries, so that the logits are the bias."""
        rule = choice(ATTENTION, "softmax").build(heads=1, head_dim=2, scale=2**-0.5, context=4, block=0)
        return rule, torch.zeros(1, 1, 4, 2), torch.tensor(VALUES)[None, None], torch.tensor([LOGITS])

    def test_weights(self) -> None:
        rule, zero, _, logits = self.rule_and_inputs()
        torch.testing.assert_close(rule.weights(zero, zero, logits)[0, 0], torch.tensor(WEIGHTS), atol=1e-6, rtol=0)

    def test_outputs(self) -> None:
        rule, zero, v, logits = self.rule_and_inputs()
        torch.testing.assert_close(rule(zero, zero, v, logits)[0, 0], torch.tensor(OUTPUTS), atol=1e-6, rtol=0)

    def test_entropies(self) -> None:
        rule, zero, _, logits = self.rule_and_inputs()
        torch.testing.assert_close(rule.entropy(zero, zero, logits)[0, 0], torch.tensor(ENTROPIES), atol=1e-6, rtol=0)
        assert float(rule.watch(zero, zero, logits)["entropy"]) == pytest.approx(2.185828 / 4, abs=1e-6)

    def test_three_tokens_of_dimension_two(self) -> None:
        """Weights and entropies of three tokens of dimension 2, fused (no bias) and explicit."""
        q = torch.tensor([[[[1.0, -1], [0.5, 2], [-1, 1]]]])
        k = torch.tensor([[[[1.0, 0], [0, 1], [1, 1]]]])
        v = torch.tensor([[[[1.0, 0], [0, 1], [2, -1]]]])
        rule = choice(ATTENTION, "softmax").build(heads=1, head_dim=2, scale=2**-0.5, context=3, block=0)
        expected = torch.tensor([[1, 0], [0.257183, 0.742817], [0.708020, 0.291980]])
        torch.testing.assert_close(rule(q, k, v)[0, 0], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close((rule.weights(q, k) @ v)[0, 0], expected, atol=1e-6, rtol=0)
        entropies = torch.tensor([0, 0.570090, 0.950537])
        torch.testing.assert_close(rule.entropy(q, k)[0, 0], entropies, atol=1e-6, rtol=0)

    def test_rows_sum_to_one_and_the_first_is_the_first_value(self) -> None:
        rule, (q, k, v) = mixing("softmax"), qkv()
        torch.testing.assert_close(rule.weights(q, k).sum(-1), torch.ones(B, H, T))
        torch.testing.assert_close(rule(q, k, v)[:, :, 0], v[:, :, 0])

    @pytest.mark.parametrize("biased", [False, True])
    def test_gradcheck_in_float64(self, biased: bool) -> None:
        rule, bias = mixing("softmax", context=4), alibi(4) if biased else None
        inputs = [x[:1].requires_grad_() for x in qkv(4, torch.float64)]
        torch.autograd.gradcheck(lambda q, k, v: rule(q, k, v, bias), inputs)


def one_dimensional(name: str, keys: list[float], context: int = 4, **changes: float) -> torch.Tensor:
    """The last row of the weights where all queries are 1 and the scale is 1: products are the keys."""
    k = torch.tensor(keys)[None, None, :, None]
    rule = choice(ATTENTION, name, **changes).build(heads=1, head_dim=1, scale=1.0, context=context, block=0)
    return rule.weights(torch.ones_like(k), k)[0, 0, -1]


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
        rule = choice(ATTENTION, "softcap", cap=1e4).build(heads=H, head_dim=K, scale=K**-0.5, context=T, block=0)
        torch.testing.assert_close(rule.weights(q, k, bias), mixing("softmax").weights(q, k, bias), atol=1e-5, rtol=0)
        torch.testing.assert_close(rule(q, k, v, bias), mixing("softmax")(q, k, v, bias), atol=1e-5, rtol=1e-5)

    def test_logits_are_bounded_by_the_cap(self) -> None:
        """Of two keys with products of +-1e6 the odds are exp(2 cap), not infinite."""
        low, high = one_dimensional("softcap", [-1e6, 1e6], cap=3.0)
        assert math.log(high / low) == pytest.approx(6.0, rel=1e-5)

    def test_bias_comes_after_the_cap(self) -> None:
        rule = choice(ATTENTION, "softcap", cap=0.01).build(heads=1, head_dim=2, scale=1.0, context=4, block=0)
        weights = rule.weights(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), torch.tensor([LOGITS]))
        torch.testing.assert_close(weights[0, 0], torch.tensor(WEIGHTS), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("s", [0.1, 4.0, 20.0])
    def test_gradient_fades_above_the_cap(self, s: float) -> None:
        """dw/ds = w (1 - w) (1 - tanh(s / cap)^2) for two keys, the other's product at 0."""
        k = torch.tensor([0.0, s])[None, None, :, None].requires_grad_()
        rule = choice(ATTENTION, "softcap", cap=5.0).build(heads=1, head_dim=1, scale=1.0, context=2, block=0)
        w = rule.weights(torch.ones_like(k), k)[0, 0, 1, 1]
        (gradient,) = torch.autograd.grad(w, k)
        weight = 1 / (1 + math.exp(-5 * math.tanh(s / 5)))
        expected = weight * (1 - weight) * (1 - math.tanh(s / 5) ** 2)
        assert gradient[0, 0, 1, 0].item() == pytest.approx(expected, rel=1e-3)

    @pytest.mark.parametrize("biased", [False, True])
    def test_the_probes_of_logits_are_before_the_cap(self, biased: bool) -> None:
        (q, k, _), bias = qkv(), alibi() if biased else None
        capped, plain = (mixing(name).watch(1e3 * q, k, bias) for name in ("softcap", "softmax"))
        assert plain["logit_max"].min() > 1e2
        for name in set(plain) - {"entropy"}:
            assert torch.equal(capped[name], plain[name]), name
        assert (capped["entropy"] > plain["entropy"] + 1e-3).all()


class TestSquaredReLU:
    def test_three_tokens_of_dimension_two(self) -> None:
        """Products 1; 0.5, 2; -1, 1, 0. Squared where positive, over sqrt(4)."""
        q = torch.tensor([[[[1.0, -1], [0.5, 2], [-1, 1]]]])
        k = torch.tensor([[[[1.0, 0], [0, 1], [1, 1]]]])
        v = torch.tensor([[[[1.0, 0], [0, 1], [2, -1]]]])
        rule = choice(ATTENTION, "relu_squared").build(heads=1, head_dim=2, scale=1.0, context=4, block=0)
        expected = torch.tensor([[0.5, 0, 0], [0.125, 2, 0], [0, 0.5, 0]])
        assert torch.equal(rule.weights(q, k)[0, 0], expected)
        assert torch.equal(rule(q, k, v)[0, 0], torch.tensor([[0.5, 0], [0.125, 2], [0, 0.5]]))
        # Of 1/17 and 16/17; the other rows have one weight.
        entropies = torch.tensor([0, math.log(17) - 16 / 17 * math.log(16), 0])
        torch.testing.assert_close(rule.entropy(q, k)[0, 0], entropies, atol=1e-6, rtol=0)

    def test_the_length_is_that_of_training(self) -> None:
        """For one key and for many, the weight of a product of 3 is 9 / sqrt(context)."""
        for keys in ([3.0], [0.0, -1, 5, 3]):
            assert one_dimensional("relu_squared", keys, context=16)[-1].item() == pytest.approx(9 / 4)

    def test_weights_are_homogeneous_in_queries(self) -> None:
        """Of degree 2: nothing holds the size of what attention puts out."""
        rule, (q, k, v) = mixing("relu_squared"), qkv()
        torch.testing.assert_close(rule(3 * q, k, v), 9 * rule(q, k, v), atol=1e-5, rtol=1e-5)

    def test_a_bias_is_part_of_the_logit(self) -> None:
        rule = choice(ATTENTION, "relu_squared").build(heads=1, head_dim=2, scale=1.0, context=4, block=0)
        weights = rule.weights(torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 4, 2), torch.tensor([LOGITS]))
        torch.testing.assert_close(weights[0, 0, 3], torch.tensor([0, 0.245, 1.125, 0]))


class TestLayer:
    def test_composition(self) -> None:
        """Project, split into heads, normalize, add positions, mix, project: written out for one set of weights."""
        attention, x_BTD = layer("softmax", qk_norm="rmsnorm"), randn(B, T, D)
        rope, heads = choice(POSITION, "rope").build(D, H, T), []
        for h in range(H):
            rows = slice(h * K, (h + 1) * K)
            q, k, v = (x_BTD @ p.weight[rows].T for p in (attention.query, attention.key, attention.value))
            q, k = (x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
            q, k = rope.rotate(q, k)
            logits = (q @ k.mT / math.sqrt(K)).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
            heads.append(logits.softmax(-1) @ v)
        expected = torch.cat(heads, -1) @ attention.out.weight.T
        torch.testing.assert_close(output(attention, x_BTD), expected, atol=1e-5, rtol=1e-5)

    def test_probes_only_when_watched(self) -> None:
        attention, x_BTD = layer("softmax"), randn(B, T, D)
        unwatched, nothing, _ = attention(x_BTD)
        watched, probes, _ = attention(x_BTD, True)
        assert nothing == {}
        assert probes
        assert torch.equal(watched, unwatched)

    def test_positions_are_not_owned_by_the_layer(self) -> None:
        """One table for all blocks: else learned positions would be counted and decayed once a block."""
        assert not any("positions" in name for name, _ in layer("softmax", "learned").named_modules())


def test_a_rule_can_be_registered_once() -> None:
    with pytest.raises(ValueError, match="attention=softmax is registered twice"):
        ATTENTION.register(ATTENTION.choices["softmax"])
