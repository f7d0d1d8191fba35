"""Attention sinks. Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs, LayerShape, MixingRule
from models.attention.sinks import SINK, KeySink, Sink, unfit
from models.carry import Carry
from models.gpt import GPT, initialize
from models.probes import over_rows, shares
from tests.conftest import choice, complete, largest_difference, randn, tiny
from tests.models.attention.mixing.helpers import LOGITS, RULES, WEIGHTS, B, D, H, K, T, alibi, build, mixing, qkv

V = 32
Q4 = [[1.0, 0], [0.5, -1], [2, 1], [-1, 0.5]]
K4 = [[0.5, 1], [1, -0.5], [-1, 2], [0.3, 0.3]]
KEYED = ["logit", "off_by_one", "key_bias", "kv_bias"]
IN_LAYER = [*KEYED, "value_bias"]


def sink(name: str, heads: int = H, head_dim: int = K, **changes: Any) -> Any:
    built = choice(SINK, name, **changes).build(LayerShape(heads * head_dim, heads, head_dim, head_dim**-0.5, T, 0, 1))
    assert isinstance(built, Sink)
    return built


def moved(name: str, **changes: Any) -> Any:
    """With its parameters off their start."""
    built = sink(name, **changes)
    for index, parameter in enumerate(built.parameters()):
        parameter.data = randn(*parameter.shape, seed=10 + index)
    return built


def gpt(*overrides: str) -> Any:
    config = tiny(*overrides)
    model = GPT(config, vocab_size=V, context=config.context)
    initialize(model, config, 0)
    return model


def tokens(length: int = 8) -> torch.Tensor:
    return torch.randint(V, (2, length), generator=torch.Generator().manual_seed(0))


def weights(built: KeySink, mix: MixingRule, q: torch.Tensor, k: torch.Tensor, bias: Any = None) -> torch.Tensor:
    """Of real queries, the sink first: [B, H, T, 1 + T]."""
    return mix.weights(built.with_sink(mix, Inputs(q, k, bias)))[:, :, 1:]


def mixed(built: Sink, mix: MixingRule, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any) -> torch.Tensor:
    return built(mix, Inputs(q, k, bias), v)


class TestLogit:
    def of_logits(self, name: str, s: float | None = None) -> torch.Tensor:
        built, zero = sink(name, heads=1, head_dim=2), torch.zeros(1, 1, 4, 2)
        if s is not None:
            built.logit.data.fill_(s)
        mix = build("softmax", heads=1, head_dim=2, scale=2**-0.5, context=4)
        return weights(built, mix, zero, zero, torch.tensor([LOGITS]))[0, 0, :, 1:].detach()

    @pytest.mark.parametrize("name", ["logit", "off_by_one"])
    def test_start_is_off_by_one(self, name: str) -> None:
        """In float64 by hand."""
        row = self.of_logits(name)[3]
        torch.testing.assert_close(row, torch.tensor([0.080208, 0.218027, 0.485228, 0.108269]), atol=1e-6, rtol=0)
        assert float(row.sum()) == pytest.approx(0.891731, abs=1e-6)

    def test_sums_of_rows(self) -> None:
        sums = torch.tensor([0.450166, 0.622791, 0.816800, 0.803537])
        torch.testing.assert_close(self.of_logits("logit", 0.7).sum(-1), sums, atol=1e-6, rtol=0)

    def test_a_low_logit_is_softmax(self) -> None:
        torch.testing.assert_close(self.of_logits("logit", -1e4), torch.tensor(WEIGHTS), atol=1e-6, rtol=0)

    def test_heads_have_logits_of_their_own(self) -> None:
        """softmax's weights times sigmoid(logsumexp - s_h)."""
        built, (q, k, _), mix = moved("logit"), qkv(), mixing("softmax")
        z = (K**-0.5 * q @ k.mT).masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf)
        share = torch.sigmoid(z.logsumexp(-1) - built.logit[:, None])
        assert built.logit[0] != built.logit[1]
        torch.testing.assert_close(weights(built, mix, q, k)[..., 1:], z.softmax(-1) * share[..., None])


class TestBiases:
    def test_vectors(self) -> None:
        """In float64 by hand."""
        built = sink("key_bias", heads=1, head_dim=2)
        built.key.data[0, 0] = torch.tensor([0.4, -0.2])
        mix = build("softmax", heads=1, head_dim=2, scale=2**-0.5, context=4)
        row = weights(built, mix, torch.tensor([[Q4]]), torch.tensor([[K4]]))[0, 0, 3]
        expected = torch.tensor([0.098512, 0.140292, 0.057965, 0.577057, 0.126174])
        torch.testing.assert_close(row, expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("name", ["logit", "key_bias", "kv_bias"])
    def test_start_is_off_by_one(self, name: str) -> None:
        (q, k, v), mix = qkv(), mixing("softmax")
        expected = mixed(sink("off_by_one"), mix, q, k, v, None)
        torch.testing.assert_close(mixed(sink(name), mix, q, k, v, None), expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("per_head", [False, True])
    @pytest.mark.parametrize("name", ["key_bias", "kv_bias"])
    def test_a_key_in_front(self, name: str, per_head: bool) -> None:
        built, (q, k, v), mix = moved(name, per_head=per_head), qkv(), mixing("softmax")
        value = built.value if name == "kv_bias" else torch.zeros(1, 1, K)
        z = K**-0.5 * q @ torch.cat([built.key.expand(B, H, 1, K), k], -2).mT
        z = z.masked_fill(torch.ones(T, T + 1, dtype=torch.bool).triu(2), -math.inf)
        expected = z.softmax(-1) @ torch.cat([value.expand(B, H, 1, K), v], -2)
        torch.testing.assert_close(mixed(built, mix, q, k, v, None), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("rule", ["softmax", "relu_squared"])
    def test_value_bias_is_a_constant(self, rule: str) -> None:
        built, (q, k, v), mix = moved("value_bias", per_head=True), qkv(), mixing(rule)
        torch.testing.assert_close(mixed(built, mix, q, k, v, None), mix(Inputs(q, k), v) + built.value)

    @pytest.mark.parametrize(
        ("name", "count"), [("off_by_one", 0), ("logit", H), ("key_bias", K), ("kv_bias", 2 * K), ("value_bias", K)]
    )
    def test_parameter_count(self, name: str, count: int) -> None:
        assert sum(p.numel() for p in sink(name).parameters()) == count
        if "bias" in name:
            assert sum(p.numel() for p in sink(name, per_head=True).parameters()) == H * count


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rule", ["softmax", "softcap"])
@pytest.mark.parametrize("name", KEYED)
class TestKeyed:
    def test_fast_path_is_the_explicit_one(self, name: str, rule: str, biased: bool) -> None:
        """Outputs, and gradients of q, k, v and the sink's own parameters."""
        built, mix, bias = moved(name), mixing(rule), alibi() if biased else None
        leaves = [*(x.requires_grad_() for x in qkv()), *built.parameters()]
        q, k, v = leaves[:3]
        first = torch.zeros(1, 1, K) if built.value is None else built.value
        with_sink = torch.cat([first.expand(B, H, 1, K), v], -2)
        outputs = mixed(built, mix, q, k, v, bias), weights(built, mix, q, k, bias) @ with_sink
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
        for one, other in zip(*(torch.autograd.grad(x.sin().sum(), leaves) for x in outputs), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)

    def test_probes_are_of_real_queries_and_keys(self, name: str, rule: str, biased: bool) -> None:
        """Those of weights of the real keys' over their sum, which are those without a sink for these rules."""
        built, mix, bias, (q, k, _) = moved(name), mixing(rule), alibi() if biased else None, qkv()
        found, plain = built.watch(mix, Inputs(q, k, bias)), mix.watch(Inputs(q, k, bias))
        assert set(found) == {*plain, "sink_share"}
        mass = weights(built, mix, q, k, bias)[..., 0].mean((0, 2))
        plain["row_sum"] = 1 - mass.detach()
        torch.testing.assert_close({n: found[n] for n in plain}, plain, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found["sink_share"], mass.detach())
        assert ((mass > 0) & (mass < 1)).all()

    def test_finite_at_large_logits_and_in_bf16(self, name: str, rule: str, biased: bool) -> None:
        built, mix, bias = moved(name), mixing(rule), alibi() if biased else None
        q, k, v = (x.requires_grad_() for x in qkv())
        expected = mixed(built, mix, q, k, v, bias)
        low = mixed(built, mix, q.bfloat16(), k.bfloat16(), v.bfloat16(), bias)
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), expected, atol=0.05, rtol=0)
        large = mixed(built, mix, 1e3 * q, 1e3 * k, v, bias)
        large.square().sum().backward()
        assert large.isfinite().all()
        assert all(x.grad is not None and x.grad.isfinite().all() for x in (q, k, v))
        assert all(p.grad is None or p.grad.isfinite().all() for p in built.parameters())

    def test_causal_at_any_length(self, name: str, rule: str, biased: bool) -> None:
        built, mix, (q, k, v) = moved(name), mixing(rule), qkv()
        whole = mixed(built, mix, q, k, v, alibi() if biased else None)
        for t in (1, 7):
            part = mixed(built, mix, q[:, :, :t], k[:, :, :t], v[:, :, :t], alibi(t) if biased else None)
            torch.testing.assert_close(part, whole[:, :, :t], atol=1e-6, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_has_it_or_refuses_it(rule: str) -> None:
    """What a rule mixes with a learned key and value is what its explicit weights say, whatever its fast path is."""
    config = tiny(*complete(f"attention={rule}"))
    if unfit(config.attention, config, has_value=True) or not config.attention.has_weights:
        with pytest.raises(ConfigError, match=rf"sink=kv_bias.* attention={rule} "):
            tiny(*complete("sink=kv_bias", f"attention={rule}"))
        return
    built, mix, (q, k, v), bias = moved("kv_bias"), mixing(rule).eval(), qkv(), alibi()
    for positions in (None, bias):
        with_sink = torch.cat([built.value.expand(B, H, 1, K), v], -2)
        expected = weights(built, mix, q, k, positions) @ with_sink
        expected = mix.finish(torch.cat([torch.zeros(B, H, 1, K), expected], -2))[:, :, 1:]
        torch.testing.assert_close(mixed(built, mix, q, k, v, positions), expected, atol=1e-5, rtol=1e-5)


def test_long_sequences_have_the_entropy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without a sink, and the same of it."""
    built, mix, (q, k, _) = moved("key_bias"), mixing("softmax"), qkv()
    every = built.watch(mix, Inputs(q, k))
    monkeypatch.setattr("models.attention.sinks.LONGEST", T - 1)
    monkeypatch.setattr("models.attention.mixing.base.LONGEST", T - 1)
    found = built.watch(mix, Inputs(q, k))
    assert set(found) == {*mix.watch(Inputs(q, k)), "sink_share"}
    torch.testing.assert_close(found, {name: every[name] for name in found})


@pytest.mark.parametrize("low", [-10.0, -100.0, -110.0, -1000.0])
@pytest.mark.parametrize("longest", [2048, 1])
def test_real_keys_far_below_the_sink(low: float, longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real logits z and z - 1 under a sink's of 0: rows of one key, and of two with shares e / (1 + e), 1 / (1 + e)."""
    monkeypatch.setattr("models.attention.sinks.LONGEST", longest)
    q, k = torch.ones(1, 1, 2, 1), torch.tensor([low, low - 1])[None, None, :, None]
    mix = build("softmax", heads=1, head_dim=1, scale=1.0)
    found = over_rows({f"x/{n}": v.tolist() for n, v in sink("off_by_one", 1, 1).watch(mix, Inputs(q, k)).items()})
    p = math.e / (1 + math.e)
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p)) / 2
    assert entropy == pytest.approx(0.291, abs=5e-4)
    expected = {"entropy": entropy, "top_weight": (1 + p) / 2, "support": (1 + 1 / (p**2 + (1 - p) ** 2)) / 2}
    expected |= {"zero_rows": 0.0, "zero_weights": 0.0}
    tolerance = 1e-5 if longest > 1 else 2e-7 * -low + 1e-5
    for name, value in expected.items() if longest > 1 else [("entropy", entropy)]:
        assert found[f"x/{name}"] == [pytest.approx(value, abs=tolerance)], name
    e, f = math.exp(low), math.exp(low - 1)
    assert found["x/sink_share"] == [pytest.approx((1 / (1 + e) + 1 / (1 + e + f)) / 2)]
    if longest > 1:
        assert found["x/row_sum"] == [pytest.approx((e / (1 + e) + (e + f) / (1 + e + f)) / 2, abs=1e-7)]


WITH_SINKS = [
    "adaptive_temperature", "approximate", "clipped_softmax", "differential", "entmax", "relu_squared", "sa_softmax",
    "sigmoid", "softcap", "softmax", "softpick", "sparse_softmax", "sparsemax", "taylor",
]  # fmt: skip


@pytest.mark.parametrize("rule", WITH_SINKS)
def test_rules_that_keep_ratios(rule: str) -> None:
    """Their shares among real keys are the same with a sink of any logit, and only theirs are."""
    (q, k, _), mix = qkv(), mixing(rule, context=512).eval()
    q, plain = 2 * q, shares(mix.weights(Inputs(2 * q, k)))
    differences = []
    for logit in (-2.0, 0.0, 2.0):
        built = sink("logit")
        built.logit.data.fill_(logit)
        with_sink = shares(weights(built, mix, q, k)[..., 1:])
        # Rows without weight say nothing about ratios.
        used = (with_sink.sum(-1) > 0) & (plain.sum(-1) > 0)
        differences.append(float((with_sink - plain).detach()[used].abs().max()))
    assert (max(differences) < 1e-5) == mix.keeps_ratios


def test_values_of_another_width_than_keys() -> None:
    """The fused kernel gets zeros for what is missing."""
    (q, k, v), mix = qkv(), mixing("softmax")
    for inputs, values in ((Inputs(q[..., :3], k[..., :3]), v), (Inputs(q, k), v[..., :3])):
        torch.testing.assert_close(mix(inputs, values), mix.weights(inputs) @ values, atol=1e-6, rtol=1e-5)


class Window(MixingRule):
    """The last two keys alone."""

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        return torch.softmax(z_BHTT, -1).triu(-1)


class Mean(MixingRule):
    """Divides by the number of visible keys."""

    def of_logits(self, z_BHTT: torch.Tensor, x_BTD: torch.Tensor | None = None) -> torch.Tensor:
        return z_BHTT.exp() / torch.arange(1, z_BHTT.shape[-1] + 1)[:, None]


class TestRefusals:
    @pytest.mark.parametrize("rule", [Window, Mean])
    def test_rules_that_weigh_by_place(self, rule: type[MixingRule]) -> None:
        config: Any = SimpleNamespace(context=8, model=SimpleNamespace(width=D, heads=H, head_dim=K, depth=1))
        made: Any = SimpleNamespace(dot_product=True, build=lambda layer: rule(layer.scale))
        assert "place" in unfit(made, config, has_value=True)

    @pytest.mark.parametrize("name", ["logit", "off_by_one", "key_bias"])
    def test_rules_that_weigh_each_key_alone(self, name: str) -> None:
        with pytest.raises(ConfigError, match=f"sink={name} .* attention=relu_squared .*: use attention=softmax or"):
            tiny(f"sink={name}", "attention=relu_squared")

    def test_a_value_has_a_meaning_there(self) -> None:
        tiny("sink=kv_bias", "attention=relu_squared")
        built, (q, k, v), mix = moved("kv_bias"), qkv(), mixing("relu_squared")
        # (scale q k*)^2 / sqrt(T) v* where the logit is positive.
        z = K**-0.5 * (q * built.key).sum(-1, keepdim=True)
        expected = mix(Inputs(q, k), v) + z.relu().square() / math.sqrt(T) * built.value
        torch.testing.assert_close(mixed(built, mix, q, k, v, None), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("name", KEYED)
    def test_rules_of_more_than_products(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from models.attention.mixing.softcap import SoftcapConfig

        monkeypatch.setattr(SoftcapConfig, "dot_product", False)
        with pytest.raises(ConfigError, match=f"sink={name} .* attention=softcap .*: use attention=softmax or"):
            tiny(f"sink={name}", "attention=softcap", "attention.cap=8")

    def test_the_question_leaves_the_random_state_alone(self) -> None:
        state = torch.get_rng_state()
        tiny("sink=logit", "seed=17")
        assert torch.equal(torch.get_rng_state(), state)


class TestToken:
    @pytest.mark.parametrize("overrides", [(), ("position=learned",), ("position=alibi", "attention=relu_squared")])
    def test_is_the_first_position(self, overrides: tuple[str, ...]) -> None:
        model = gpt("sink=token", "model.depth=2", "value_residual=identity", *overrides)
        assert model.sink_token.weight.shape == (1, 16)
        x = torch.cat([model.sink_token.weight.expand(2, 1, -1), model.embedding.weight[tokens()]], 1)
        x, carry = model.positions.embed(x), Carry()
        for block in model.blocks:
            x = block(x, carry)
        expected = model.final_norm(x)[:, 1:] @ model.head.weight.T
        found = model(tokens())[0]
        assert found.shape == (2, 8, V)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)

    def test_is_an_embedding_outside_of_n(self) -> None:
        model, plain = gpt("sink=token", "init=normal", "init.std=0.5"), gpt()
        assert model.parameter_count() == plain.parameter_count()
        assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters()) + 16
        assert 0.3 < float(model.sink_token.weight.detach().std()) < 0.8
        assert float(
            gpt("placement=ngpt", "norm=none", "qk_norm=none", "sink=token").sink_token.weight.detach().norm()
        ) == (pytest.approx(1))

    def test_rules_that_count_keys_count_it(self) -> None:
        model = gpt("sink=token", "attention=relu_squared")
        assert model.blocks[0].attention.mix.root == math.sqrt(9)
        assert model.context == 8


@pytest.mark.parametrize("name", [*IN_LAYER, "token"])
class TestInTheModel:
    def test_causal(self, name: str) -> None:
        model, before, after = gpt(f"sink={name}"), tokens(), tokens()
        for parameter in model.blocks[0].attention.sink.parameters() if name != "token" else ():
            parameter.data = randn(*parameter.shape)
        after[:, 5] = (after[:, 5] + 1) % V
        one, other = model(before)[0], model(after)[0]
        torch.testing.assert_close(one[:, :5], other[:, :5], atol=1e-6, rtol=0)
        assert (one[:, 5:] - other[:, 5:]).abs().max() > 1e-3

    @pytest.mark.parametrize("length", [1, 20])
    def test_any_length_and_autocast(self, name: str, length: int) -> None:
        model = gpt(f"sink={name}", "position=none")
        with torch.autocast("cpu", torch.bfloat16):
            logits, stats = model(tokens(length), watch=True)
        logits.square().mean().backward()
        assert all(x.isfinite().all() for x in (logits, *stats.values()))
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def test_sinks_learn_under_mup(self, name: str) -> None:
        """A step of training moves them, in a parametrization that classifies all tensors."""
        from train.run.module import ProxyModule

        config = tiny(f"sink={name}", "parametrization=mup_full", "placement=sandwich")
        proxy = ProxyModule(config)
        optimizer: Any = proxy.configure_optimizers()
        before = {n: p.detach().clone() for n, p in proxy.model.named_parameters()}
        for step in range(2):
            optimizer.zero_grad()
            proxy.step_loss(torch.randint(V, (4, 9), generator=torch.Generator().manual_seed(step)), step).backward()
            proxy.clip(step)
            proxy.update(optimizer, step)
        own = {n: p for n, p in proxy.model.named_parameters() if "sink" in n}
        assert bool(own) == (name != "off_by_one")
        assert all((p != before[n]).any() and p.isfinite().all() for n, p in own.items())


def test_none_has_no_parameters() -> None:
    assert not list(gpt().blocks[0].attention.sink.parameters())
    assert gpt().sink_token is None
    assert largest_difference(gpt().state_dict(), gpt("sink=none").state_dict()) == 0
