"""Temperatures of attention's logits. Shape suffixes: B batch, H heads, T tokens, K head dimension."""

import math
from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.base import ATTENTION, Inputs, LayerShape
from models.attention.temperature import TEMPERATURE, Temperature
from models.gpt import GPT, initialize
from models.layers import Linear
from tests.conftest import choice, complete, largest_difference, randn, tiny
from tests.models.attention.mixing.helpers import LOGITS, WEIGHTS

B, H, T, K = 2, 2, 6, 8
V = 32
NAMES = sorted(set(TEMPERATURE.choices) - {"none"})


def shape(heads: int = H, context: int = T, block: int = 0) -> LayerShape:
    return LayerShape(heads * K, heads, K, K**-0.5, context, block, 2)


def temperature(name: str, layer: LayerShape | None = None, **changes: Any) -> Temperature:
    built = choice(TEMPERATURE, name, **changes).build(layer or shape())
    assert built is not None
    return built


def gpt(*overrides: str) -> Any:
    config = tiny(*overrides)
    model = GPT(config, vocab_size=V, context=config.context)
    initialize(model, config, 0)
    return model


def tokens(length: int = 8) -> torch.Tensor:
    return torch.randint(V, (2, length), generator=torch.Generator().manual_seed(0))


def weights(built: Temperature) -> torch.Tensor:
    """Softmax of LOGITS times the factors of four rows of zero queries, [4, 4]."""
    logits, future = torch.tensor(LOGITS), torch.ones(4, 4, dtype=torch.bool).triu(1)
    factor = built(torch.zeros(1, 1, 4, K)).expand(1, 1, 4, 1)[0, 0]
    return (factor * logits).masked_fill(future, -math.inf).softmax(-1).detach()


class TestScalableSoftmax:
    def test_vectors(self) -> None:
        """s = 0.43 on the logits that all rules' tests share, in float64 by hand."""
        found = weights(temperature("ssmax", shape(1)))
        expected = torch.tensor([[0.255905, 0.598923, 0.145172, 0], [0.144197, 0.261722, 0.421648, 0.172433]])
        torch.testing.assert_close(found[2:], expected, atol=1e-6, rtol=0)
        assert torch.equal(found[0], torch.tensor([1.0, 0, 0, 0]))

    def test_factors_are_of_the_row_and_not_of_the_length(self) -> None:
        built, q = temperature("ssmax", s=2.0), randn(B, H, 40, K)
        expected = 2 * torch.tensor([math.log(n) for n in range(1, 41)])
        torch.testing.assert_close(built(q)[0, :, 0], expected)
        assert torch.equal(built(q[:, :, :T]), built(q)[:, :T])

    def test_bias_one_is_softmax_without_s(self) -> None:
        built = temperature("ssmax", shape(1), bias=True)
        for parameter, value in zip(built.parameters(), (0.0, 1.0), strict=True):
            parameter.data.fill_(value)
        torch.testing.assert_close(weights(built), torch.tensor(WEIGHTS), atol=1e-6, rtol=0)

    @pytest.mark.parametrize(("changes", "count"), [({}, H), ({"bias": True}, 2 * H), ({"learned": False}, 0)])
    def test_parameter_count(self, changes: dict[str, Any], count: int) -> None:
        assert sum(p.numel() for p in temperature("ssmax", **changes).parameters()) == count


class TestSelective:
    def test_vectors(self) -> None:
        """With c = 1/2 and w = 0, in float64 by hand."""
        built = temperature("ssa", shape(1), beta=math.log(math.log(2)))
        expected = torch.tensor([1, 1.346574, 1.549306, 1.693147])
        torch.testing.assert_close(built(torch.zeros(1, 1, 4, K))[0, 0, :, 0], expected, atol=1e-6, rtol=0)
        row = torch.tensor([0.034288, 0.186410, 0.722319, 0.056983])
        torch.testing.assert_close(weights(built)[3], row, atol=1e-6, rtol=0)

    def test_default_coefficient(self) -> None:
        factor = temperature("ssa")(torch.zeros(1, H, 4, K))[0, 0, :, 0]
        torch.testing.assert_close(factor, 1 + 0.011314 * torch.arange(1, 5).log(), atol=1e-6, rtol=0)

    def test_a_large_beta_is_softmax(self) -> None:
        built, q, v = temperature("ssa", beta=10.0), randn(B, H, T, K), randn(B, H, T, K, seed=1)
        assert torch.equal(built(q), torch.ones(B, H, T, 1))
        assert torch.equal(built.values(v), v)

    def test_parts_of_the_token(self) -> None:
        built, q, v = temperature("ssa", beta=10.0), randn(B, H, T, K), randn(B, H, T, K, seed=1)
        built.of_query.data, built.of_value.data = randn(H, 1, K, seed=2), randn(H, 1, K, seed=3)
        of_q = 1 + torch.einsum("bhtk,hk->bht", q, built.of_query[:, 0]).tanh()
        of_v = 1 + torch.einsum("bhtk,hk->bht", v, built.of_value[:, 0]).tanh()
        torch.testing.assert_close(built(q), of_q[..., None])
        torch.testing.assert_close(built.values(v), of_v[..., None] * v)
        assert built.values(v.bfloat16()).dtype == torch.bfloat16

    @pytest.mark.parametrize(
        ("changes", "count"), [({}, 2 * H * K + 1), ({"value": False}, H * K + 1), ({"query": False}, H * K)]
    )
    def test_parameter_count(self, changes: dict[str, Any], count: int) -> None:
        assert sum(p.numel() for p in temperature("ssa", **changes).parameters()) == count

    def test_qk_clip_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="temperature=ssa"):
            tiny("temperature=ssa", "optimizer.qk_clip=100", "qk_norm=none")
        tiny("temperature=ssmax", "optimizer.qk_clip=100", "qk_norm=none")


class TestEntropyABF:
    def test_factors_of_the_paper(self) -> None:
        """c = 4096: 1 up to there, then log n / log c."""
        factor = temperature("entropy_abf", shape(context=8192))(torch.zeros(1, 1, 32768, 1))[:, 0]
        assert (factor[:4096] == 1).all()
        assert [round(float(factor[n - 1]), 6) for n in (8192, 16384, 32768)] == [1.083333, 1.166667, 1.25]

    def test_first_block(self) -> None:
        made = choice(TEMPERATURE, "entropy_abf", start=1)
        assert made.build(shape(block=0)) is None
        assert made.build(shape(block=1)) is not None

    def test_the_whole_context_is_none(self) -> None:
        found, plain = gpt("temperature=entropy_abf", "temperature.share=1"), gpt()
        assert torch.equal(found(tokens())[0], plain(tokens())[0])


@pytest.mark.parametrize("name", NAMES)
class TestEveryTemperature:
    def moved(self, name: str, *overrides: str) -> Any:
        """A model with the parameters of its temperatures off their start."""
        model = gpt(f"temperature={name}", *overrides)
        for index, parameter in enumerate(model.blocks[0].attention.temperature.parameters()):
            parameter.data += 0.3 * randn(*parameter.shape, seed=index)
        return model

    def test_fp32_factors(self, name: str) -> None:
        built = temperature(name)
        with torch.autocast("cpu", torch.bfloat16):
            factor = built(randn(B, H, T, K).bfloat16())
        assert factor.dtype == torch.float32
        assert (factor * torch.ones(B, H, T, K)).shape == (B, H, T, K)

    @pytest.mark.parametrize("overrides", [("position=rope",), ("position=alibi", "attention=softcap", "qk_norm=none")])
    def test_queries_are_multiplied_behind_the_positions(self, name: str, overrides: tuple[str, ...]) -> None:
        """The logits of a pre-norm block, by hand: fast paths and the explicit one see the same logits."""
        model = self.moved(name, *overrides)
        block, x = model.blocks[0], model.embedding.weight[tokens()]
        a, h = block.attention, block.attention_norms.input(x)
        q, k, v = (p(h).unflatten(-1, (a.heads, -1)).transpose(1, 2) for p in (a.query, a.key, a.value))
        q, k = a.qk_norm(q, k)
        factor, (positions,) = a.temperature(q), a._positions
        q, k = positions.rotate(q, k)
        mixed = a.mix.weights(Inputs(q * factor, k, positions.bias(8))) @ a.temperature.values(v)
        x = x + a.out(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.mlp_norms.input(x))
        expected = model.final_norm(x) @ model.head.weight.T
        torch.testing.assert_close(model(tokens())[0], expected, atol=1e-5, rtol=1e-5)

    def test_probes_are_of_the_logits_with_it(self, name: str) -> None:
        _, stats = (model := self.moved(name, "qk_norm=none"))(tokens(), watch=True)
        a, h = model.blocks[0].attention, model.blocks[0].attention_norms.input(model.embedding.weight[tokens()])
        q, k = (p(h).unflatten(-1, (a.heads, -1)).transpose(1, 2) for p in (a.query, a.key))
        factor = a.temperature(q)
        q, k = a._positions[0].rotate(q, k)
        z = (factor * (q @ k.mT) * a.mix.scale).masked_fill(torch.ones(8, 8, dtype=torch.bool).triu(1), -math.inf)
        torch.testing.assert_close(stats["attention/block0/logit_max"], z.detach().amax((0, 2, 3)))
        entropy = torch.special.entr(z.detach().softmax(-1)).sum(-1).mean((0, 2))
        torch.testing.assert_close(stats["attention/block0/entropy"], entropy, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("length", [1, 8])
    def test_causal_and_finite(self, name: str, length: int) -> None:
        model, before, after = self.moved(name, "qk_norm=none"), tokens(length), tokens(length)
        after[:, -1] = (after[:, -1] + 1) % V
        model.blocks[0].attention.query.weight.data *= 1e3
        one, other = model(before)[0], model(after)[0]
        torch.testing.assert_close(one[:, :-1], other[:, :-1], atol=1e-6, rtol=0)
        one.square().mean().backward()
        assert one.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

    def test_longer_than_the_context(self, name: str) -> None:
        model = self.moved(name, "position=none")
        torch.testing.assert_close(model(tokens(20))[0][:, :8], model(tokens(20)[:, :8])[0], atol=1e-6, rtol=1e-5)

    def test_rules_without_products_are_refused(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from models.attention.mixing.softcap import SoftcapConfig

        monkeypatch.setattr(SoftcapConfig, "dot_product", False)
        with pytest.raises(ConfigError, match=f"temperature={name} .* attention=softcap .*: use attention=softmax or"):
            tiny(f"temperature={name}", "attention=softcap", "attention.cap=7")


def test_rules_of_a_pattern_are_asked() -> None:
    with pytest.raises(ConfigError, match=r"temperature=ssmax .* attention=fox .*: use attention=softmax or"):
        tiny("temperature=ssmax", "attention.pattern=[self,fox]", "model.depth=2")
    tiny("temperature=ssmax", "attention.pattern=[self,softcap]", "model.depth=2")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["temperature=ssmax", "attention=softpick"], "where attention=softpick gives the only key no weight"),
        (["temperature=entropy_abf", "temperature.start=2", "model.depth=2"], "after the last of model.depth=2 blocks"),
    ],
)
def test_what_would_have_no_effect_or_undo_a_row_is_refused(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        tiny(*overrides)


def test_ssmax_leaves_no_first_token_without_weight() -> None:
    """Of all rules that it goes with."""
    tried = 0
    for name in ATTENTION.choices:
        try:
            model = gpt(*complete(f"attention={name}"), "temperature=ssmax", "qk_norm=none")
        except ConfigError:
            continue
        seen: list[torch.Tensor] = []
        for part in model.blocks[0].attention.modules():
            if isinstance(part, Linear) and part.role == "out":
                part.register_forward_hook(lambda module, args, out, to=seen: to.append(args[0]))
        model(tokens(8))
        tried += len(seen)
        assert all(x_BTD[:, 0].norm() > 0 for x_BTD in seen), name
    assert tried > 10


def test_none_has_no_parameters() -> None:
    assert gpt().blocks[0].attention.temperature is None
    assert largest_difference(gpt().state_dict(), gpt("temperature=none").state_dict()) == 0
