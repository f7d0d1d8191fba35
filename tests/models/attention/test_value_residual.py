"""Value residual (Zhou et al. 2024, ResFormer). Shape suffixes: B batch, H heads, T tokens, K head dimension."""

from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs
from models.carry import Carry
from models.gpt import GPT, initialize
from tests.conftest import complete, largest_difference, randn, tiny

V, T = 32, 8


def gpt(*overrides: str) -> Any:
    config = tiny(*complete(*overrides))
    model = GPT(config, vocab_size=V, context=config.context)
    initialize(model, config, 0)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(V, (2, T), generator=torch.Generator().manual_seed(0))


def written_out(model: Any, first: list[float], own: list[float]) -> torch.Tensor:
    """Logits of a pre-norm model whose block l attends over first[l] V_1 + own[l] V_l."""
    x = model.embedding.weight[tokens()]
    v_1 = None
    for block, l_1, l_2 in zip(model.blocks, first, own, strict=True):
        a, h = block.attention, block.attention_norms.input(x)
        q, k, v = (p(h).unflatten(-1, (a.heads, -1)).transpose(1, 2) for p in (a.query, a.key, a.value))
        v_1 = v if v_1 is None else v_1
        q, k = a._positions[0].rotate(*a.qk_norm(q, k))
        x = x + a.out((a.mix.weights(Inputs(q, k)) @ (l_1 * v_1 + l_2 * v)).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.mlp_norms.input(x))
    return model.final_norm(x) @ model.head.weight.T


@pytest.mark.parametrize("name", ["identity", "learnable"])
def test_starts_as_the_mean_of_the_first_values_and_its_own(name: str) -> None:
    """Of the first block's values as they are, in the third block too, and not of what the second attended to."""
    model = gpt("model.depth=3", f"value_residual={name}")
    expected = written_out(model, [0, 0.5, 0.5], [1, 0.5, 0.5])
    torch.testing.assert_close(model(tokens())[0], expected, atol=1e-5, rtol=1e-5)


def test_learned_numbers() -> None:
    model = gpt("model.depth=3", "value_residual=learnable")
    weights = [(n, p) for n, p in model.named_parameters() if "value_residual" in n]
    assert [n for n, _ in weights] == [f"blocks.{b}.attention.value_residual.weight" for b in (1, 2)]
    assert all(torch.equal(p.detach(), torch.full((2,), 0.5)) for _, p in weights)
    for index, (_, p) in enumerate(weights):
        p.data = randn(2, seed=index)
    (a, b), (c, d) = (p.tolist() for _, p in weights)
    torch.testing.assert_close(model(tokens())[0], written_out(model, [0, a, c], [1, b, d]), atol=1e-5, rtol=1e-5)
    for _, p in weights:
        p.data = torch.tensor([0.0, 1.0])
    plain = gpt("model.depth=3")
    torch.testing.assert_close(model(tokens())[0], plain(tokens())[0], atol=1e-6, rtol=1e-6)


def test_identity_has_no_parameters() -> None:
    with_it, without = (gpt("model.depth=3", f"value_residual={v}").parameter_count() for v in ("identity", "null"))
    assert with_it == without


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("name", ["identity", "learnable"])
def test_the_first_block_has_none(name: str, depth: int) -> None:
    with_it, without = gpt(f"model.depth={depth}", f"value_residual={name}"), gpt(f"model.depth={depth}")
    assert largest_difference(with_it.state_dict(), without.state_dict()) == 0
    assert torch.equal(with_it(tokens())[0], without(tokens())[0])


@pytest.mark.parametrize("name", ["identity", "learnable"])
def test_without_values_of_its_own_a_block_attends_over_the_first_ones(name: str) -> None:
    model = gpt("model.depth=2", f"value_residual={name}")
    model.blocks[1].attention.value.weight.data.zero_()
    out = model.blocks[1].attention(randn(2, T, 16), Carry(first_BHTK=randn(2, 2, T, 8, seed=1)))
    assert out.abs().max() > 0


@pytest.mark.parametrize("name", ["identity", "learnable"])
def test_gradients_reach_the_first_values_and_every_parameter(name: str) -> None:
    model = gpt("model.depth=3", f"value_residual={name}")
    first = randn(2, 2, T, 8, seed=1).requires_grad_()
    model.blocks[2].attention(randn(2, T, 16), Carry(first_BHTK=first)).sin().sum().backward()
    assert first.grad is not None
    assert first.grad.abs().max() > 0
    model.zero_grad()
    model(tokens())[0].sin().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


# ngpt has its own norms, mv_split means over tokens, hybridnorm norms of the values.
PLACEMENTS = ["pre", "post", "hybridnorm", "mv_split", "ngpt"]


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", ["identity", "learnable"])
def test_causality_and_prefixes(name: str, placement: str) -> None:
    model, tokens_BT = gpt("model.depth=3", f"value_residual={name}", f"placement={placement}"), tokens()
    changed_BT = tokens_BT.clone()
    changed_BT[:, 5] = (changed_BT[:, 5] + 1) % V
    before = model(tokens_BT)[0]
    for after in (model(changed_BT)[0], model(tokens_BT[:, :5])[0]):
        torch.testing.assert_close(after[:, :5], before[:, :5], atol=1e-6, rtol=0)


def test_values_of_hybridnorm_are_mixed_behind_their_norm() -> None:
    model = gpt("model.depth=2", "placement=hybridnorm", "value_residual=identity", "norm=rmsnorm")
    x, attention = randn(2, T, 16), model.blocks[0].attention
    attention(x, carry := Carry())
    values = carry.first_BHTK
    assert values is not None
    torch.testing.assert_close(values.square().mean(-1), torch.ones(2, 2, T), atol=1e-3, rtol=0)
    torch.testing.assert_close(values, attention.value(x).unflatten(-1, (2, -1)).transpose(1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learnable", "identity"])
def test_compiled_and_autocast(name: str) -> None:
    model = gpt("model.depth=3", f"value_residual={name}")
    exact = model(tokens())[0]
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens())[0], exact, atol=1e-5, rtol=1e-5)
    torch.compiler.reset()
    with torch.autocast("cpu", torch.bfloat16):
        assert 0 < (model(tokens())[0] - exact).abs().max() < 0.15


def test_what_is_no_value_residual_is_refused() -> None:
    with pytest.raises(ConfigError, match="value_residual=dense: input should be 'identity' or 'learnable'"):
        tiny("value_residual=dense")
