"""The whole model. Shape suffixes: B batch, T tokens, V vocabulary."""

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conf.axis import ConfigError
from models.attention.mixing.base import ATTENTION
from models.attention.qk_norm import QK_NORM
from models.carry import Carry
from models.gpt import GPT, fp32_head, initialize
from models.norms import NORM
from models.positions import POSITION
from models.probes import stream_stats, weight_stats
from tests.conftest import largest_difference, randn, tiny, yaml_values
from train.config.choices import choices

V, T = 32, 8


def gpt(*overrides: str, vocab_size: int = V, keep_maxima: bool = False) -> GPT:
    config = tiny(*overrides)
    model = GPT(config, vocab_size=vocab_size, context=config.context, keep_maxima=keep_maxima)
    initialize(model, config, 0)
    return model


def tokens(batch: int = 2, length: int = T, vocab_size: int = V, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    return model(tokens_BT)[0]


class TestSize:
    @pytest.mark.parametrize("name", choices()["model"])
    def test_named_sizes(self, name: str) -> None:
        """N = 12 L d^2 and the norms; the names (Wortsman et al. 2023: 2.4M ... 4.8B) are N rounded to their digits."""
        size = yaml_values("model", name)
        width, depth, head_dim = size["width"], size["depth"], size["width"] // size["heads"]
        # Not through `tiny`, which sets a size of its own.
        overrides = [f"model.{key}={value}" for key, value in size.items()]
        with torch.device("meta"):
            config = tiny(*overrides)
            model = GPT(config, vocab_size=V, context=config.context)
        norms = (2 * depth + 1) * width + 2 * depth * head_dim
        assert model.parameter_count() == 12 * depth * width**2 + norms
        assert size["name"] == name
        if name == "gpt2-124M":  # counts its embeddings: 50257 tokens and 1024 positions, the norms' biases aside
            assert model.parameter_count() + (50257 + 1024) * width == pytest.approx(124e6, abs=0.5e6)
            return
        if shape := re.fullmatch(r"(?:mini-)?w(\d+)-d(\d+)", name):
            assert (width, depth) == (int(shape[1]), int(shape[2]))
            return
        match = re.fullmatch(r"(\d+(?:\.(\d+))?)([MB])", name)
        assert match, name
        unit = {"M": 1e6, "B": 1e9}[match[3]]
        assert abs(model.parameter_count() - float(match[1]) * unit) <= 0.5 * unit * 10.0 ** -len(match[2] or "")

    @pytest.mark.parametrize("name", [n for n in choices()["model"] if n != "gpt2-124M"])
    def test_head_dimension_is_constant_over_a_ladder(self, name: str) -> None:
        """Wortsman et al. 2023, section 3.2.3."""
        size = yaml_values("model", name)
        assert size["width"] / size["heads"] == (16 if name.startswith("mini") else 64)

    def test_embeddings_positions_and_head_do_not_count(self) -> None:
        count = gpt().parameter_count()
        assert gpt(vocab_size=999).parameter_count() == count
        assert gpt("position=learned").parameter_count() == count
        assert sum(p.numel() for p in gpt("position=learned").parameters()) == count + (2 * V + T) * 16

    def test_head_is_untied(self) -> None:
        model = gpt()
        assert model.head.weight is not model.embedding.weight
        before = logits(model, tokens())
        model.head.weight.data *= 2
        torch.testing.assert_close(logits(model, tokens()), 2 * before)

    @pytest.mark.parametrize(
        ("mlp", "norm", "qk_norm"),
        [
            *(("gelu", norm, "layernorm") for norm in sorted(NORM.choices.keys() - {"dyt"})),
            *(("swiglu", "rmsnorm", qk_norm) for qk_norm in sorted(QK_NORM.choices)),
        ],
    )
    def test_no_biases(self, mlp: str, norm: str, qk_norm: str) -> None:
        """ "We never use biases": Wortsman et al. 2023, Fig. E.8. DyT's is part of its equation."""
        model = gpt(f"mlp={mlp}", f"norm={norm}", f"qk_norm={qk_norm}")
        assert all(name.endswith((".weight", ".gain", ".scale")) for name, _ in model.named_parameters())

    def test_heads_must_divide_the_width(self) -> None:
        with pytest.raises(ConfigError, match=r"heads=5 does not divide width=16: heads=4 would"):
            tiny("model.heads=5")


class TestForward:
    @pytest.mark.parametrize("position", sorted(POSITION.choices))
    def test_causality(self, position: str) -> None:
        model, tokens_BT = gpt("model.depth=2", f"position={position}"), tokens()
        changed_BT = tokens_BT.clone()
        changed_BT[:, 5] = (changed_BT[:, 5] + 1) % V
        before, after = logits(model, tokens_BT), logits(model, changed_BT)
        torch.testing.assert_close(after[:, :5], before[:, :5], atol=1e-6, rtol=0)
        assert (after[:, 5:] - before[:, 5:]).abs().amax((0, 2)).min() > 1e-4
        torch.testing.assert_close(logits(model, tokens_BT[:, :5]), before[:, :5], atol=1e-6, rtol=0)

    def test_loss_at_init(self) -> None:
        """The final norm makes features of mean square 1, the head logits of variance 1: E log Z = ln V + 1/2."""
        vocab_size = 2048
        model, tokens_BT = gpt("model.width=256", "model.heads=8", vocab_size=vocab_size), tokens(64, 8, vocab_size)
        targets = tokens(64, 8, vocab_size, seed=1)
        with torch.no_grad():
            loss = F.cross_entropy(logits(model, tokens_BT).flatten(0, 1), targets.flatten())
        assert loss.item() == pytest.approx(math.log(vocab_size) + 0.5, abs=0.15)

    def test_block_equations(self) -> None:
        """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x)); a norm before the head. Section 2.1 of the paper."""
        model, tokens_BT = gpt("model.depth=2"), tokens()
        x = model.embedding.weight[tokens_BT]
        for block in model.blocks:
            x = x + block.attention(block.attention_norms.input(x), Carry())
            x = x + block.mlp(block.mlp_norms.input(x))
        expected = model.final_norm(x) @ model.head.weight.T
        torch.testing.assert_close(logits(model, tokens_BT), expected, atol=1e-5, rtol=1e-5)

    def test_residual_stream_stays_in_fp32_under_autocast(self) -> None:
        model = gpt("model.depth=2")
        seen: list[torch.dtype] = []
        for block in model.blocks:
            block.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            model(tokens())
        assert seen == [torch.float32] * 2

    @pytest.mark.parametrize("position", sorted(POSITION.choices))
    def test_depth_zero_is_a_bigram_model(self, position: str) -> None:
        """Wortsman et al. 2023, Fig. 10: logits depend on the current token (and its learned position) alone."""
        model, tokens_BT = gpt("model.depth=0", f"position={position}"), tokens()
        found = logits(model, tokens_BT)
        same_token = logits(model, tokens_BT[:1].repeat(1, 1)[:, :1].expand(1, T))
        assert model.parameter_count() == 16  # the final norm
        assert torch.equal(found[0, 0], same_token[0, 0])
        alike = torch.equal(same_token[0, 0], same_token[0, T - 1])
        assert alike == (position != "learned")
        assert model(tokens_BT, True)[1] == {}

    @pytest.mark.parametrize("position", ["rope", "alibi"])
    @pytest.mark.parametrize("autocast", [False, True])
    def test_watching_changes_no_bit(self, position: str, autocast: bool) -> None:
        model, tokens_BT = gpt("model.depth=2", f"position={position}"), tokens()
        gradients = []
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for watch in (False, True):
                model.zero_grad()
                found, stats = model(tokens_BT, watch)
                found.square().mean().backward()
                gradients.append({n: p.grad.clone() for n, p in model.named_parameters()} | {"logits": found.detach()})
                assert bool(stats) == watch
        assert largest_difference(*gradients) == 0

    def test_probes_of_every_block(self) -> None:
        model = gpt("model.depth=2")
        stats = model(tokens(), True)[1]
        of_logits = {"logit_max", "q_norm", "k_norm", "cosine_mean", "cosine_of_max_pair"}
        attention = of_logits | weight_stats(torch.ones(1, 1, 1, 1)).keys()
        names = {f"attention/block{i}/{n}" for i in range(2) for n in attention}
        names |= {f"residual/block{i}/{n}" for i in range(2) for n in stream_stats(torch.ones(1, 1, 1))}
        assert set(stats) == names
        x = model.embedding(tokens())
        for index, block in enumerate(model.blocks):
            x = block(x, Carry())
            expected = x.double().square().mean().sqrt().item()
            assert stats[f"residual/block{index}/rms"].item() == pytest.approx(expected, rel=1e-6)


class TestHead:
    def test_logits_are_fp32_under_autocast(self) -> None:
        """Also in value: bf16 logits would be off by up to 2^-9 of their size, those of fp32 features are not."""
        x_BTD, weight_VD = randn(2, 5, 64), randn(V, 64, seed=1)
        expected = (x_BTD.double() @ weight_VD.double().T).float()
        with torch.autocast("cpu", torch.bfloat16):
            found = fp32_head(x_BTD, weight_VD)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(fp32_head(x_BTD, weight_VD), expected, atol=1e-5, rtol=1e-5)

    def test_gradients_under_autocast_are_close_to_fp32(self) -> None:
        inputs = [randn(2, 5, 64).requires_grad_(), randn(V, 64, seed=1).requires_grad_()]
        exact = torch.autograd.grad(fp32_head(*inputs).sin().sum(), inputs)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = fp32_head(*inputs).sin().sum()
        found = torch.autograd.grad(outputs, inputs)
        for one, other in zip(found, exact, strict=True):
            assert one.dtype == torch.float32
            assert (one - other).norm() < 0.01 * other.norm()

    def test_model_under_autocast_is_close_to_fp32(self) -> None:
        model, tokens_BT = gpt("model.depth=2"), tokens()
        exact = logits(model, tokens_BT)
        with torch.autocast("cpu", torch.bfloat16):
            found = logits(model, tokens_BT)
        assert found.dtype == torch.float32
        assert 0 < (found - exact).abs().max() < 0.05
        found.square().mean().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("position", ["rope", "alibi"])
def test_compiled_model_is_the_same(position: str) -> None:
    model, tokens_BT = gpt(f"position={position}"), tokens()
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    for watch in (False, True):
        (expected, probes), (found, found_probes) = model(tokens_BT, watch), compiled(tokens_BT, watch)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        assert largest_difference(found_probes, probes) < 1e-5
    torch.compiler.reset()


def test_learned_positions_end_with_the_context() -> None:
    """All others go on: tests/train/run/test_long_validation.py."""
    with pytest.raises(RuntimeError):
        gpt("position=learned")(tokens(length=T + 1))


@pytest.mark.slow
@pytest.mark.parametrize("attention", sorted(ATTENTION.choices))
@pytest.mark.parametrize("qk_norm", ["none", "layernorm"])
def test_compiled_gradients_are_those_of_the_eager_model(attention: str, qk_norm: str) -> None:
    """Of two heads: the layout of q's gradient is where a compiled explicit path once failed."""
    config = tiny(f"attention={attention}", f"qk_norm={qk_norm}", "model.heads=2", f"context={T}")
    grads = []
    for compiled in (False, True):
        model = GPT(config, vocab_size=V, context=T)
        initialize(model, config, 0)
        run = torch.compile(model, backend="aot_eager") if compiled else model
        run(torch.arange(2 * T).reshape(2, T) % V)[0].logsumexp(-1).mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-7)
