"""What queries and keys are made of."""

from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs
from models.carry import Carry
from tests.conftest import tiny
from tests.models.test_gpt import gpt, logits, tokens
from train.run.module import ProxyModule

DEEP = ("model.depth=3", "qk_norm=none")
FIXED = ["random_embedding", "fixed_sequence"]
T = 8


def made(name: str, *overrides: str) -> Any:
    model = gpt(*DEEP, f"qk_source={name}", *overrides)
    model.qk_source.keep(tokens(1, seed=5)[0])
    return model


def mixed(model: Any, batch: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """The queries, keys and values of each block's attention to the batch."""
    found: list[tuple[Inputs, torch.Tensor]] = []
    hooks = [
        block.attention.mix.register_forward_pre_hook(lambda _, args: found.append(args)) for block in model.blocks
    ]
    model(batch)
    for hook in hooks:
        hook.remove()
    of_batch = [(inputs, v) for inputs, v in found if inputs.x_BTD is not None and len(inputs.x_BTD) == len(batch)]
    return [(inputs.q_BHTK, inputs.k_BHTK, v) for inputs, v in of_batch]


@pytest.mark.parametrize("name", FIXED)
def test_attention_to_a_fixed_sequence_is_the_same_for_every_input(name: str) -> None:
    model = made(name)
    one, other = (mixed(model, tokens(2, seed=s)) for s in (0, 1))
    for (q, k, v), (q_other, k_other, v_other) in zip(one, other, strict=True):
        assert torch.equal(q, q_other)
        assert torch.equal(k, k_other)
        assert torch.equal(q[0], q[1])
        assert (v - v_other).abs().max() > 1e-2
    assert (one[0][0] - one[2][0]).abs().max() > 1e-3


@pytest.mark.parametrize("given", [(), ("value_residual=identity",), ("placement=post",), ("layout=gqa",),
                                   ("sink=token",), ("gate=elementwise",), ("temperature=ssa",), ("sink=kv_bias",),
                                   ("embedding_norm=true", "position=learned")])  # fmt: skip
def test_the_fixed_sequence_itself_has_standard_attention(given: tuple[str, ...]) -> None:
    model, plain = made("fixed_sequence", *given), gpt(*DEEP, *given)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("qk_source")})
    batch = torch.cat([tokens(1, seed=5), tokens(1, seed=6)])
    ours, theirs = logits(model, batch), logits(plain, batch)
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-5)
    assert (ours[1] - theirs[1]).abs().max() > 1e-3


def test_random_embeddings_go_through_the_blocks() -> None:
    model = made("random_embedding", "position=none")
    side_BTD = model.qk_source.embedding_TD[None]
    for block, (q_BHTK, k_BHTK, _) in zip(model.blocks, mixed(model, tokens()), strict=True):
        read_BTD = block.attention_norms.input(side_BTD)
        for found, matrix in ((q_BHTK, block.attention.query), (k_BHTK, block.attention.key)):
            expected = matrix(read_BTD).unflatten(-1, (2, -1)).transpose(1, 2).expand_as(found)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        side_BTD = block(side_BTD, Carry())


def test_random_embeddings_are_the_seed_s_and_are_saved() -> None:
    model, again = made("random_embedding", "context=64"), made("random_embedding", "context=64")
    found = model.state_dict()["qk_source.embedding_TD"]
    assert found.shape == (64, 16)
    assert found.std().item() == pytest.approx(0.25, rel=0.1)
    assert torch.equal(found, again.qk_source.embedding_TD)
    plain = gpt(*DEEP, "context=64")
    assert all(torch.equal(p, model.get_parameter(n)) for n, p in plain.named_parameters())


def test_embeddings_are_those_of_the_tokens_in_every_block() -> None:
    model, batch = made("embedding", "position=none"), tokens()
    for block, (q_BHTK, k_BHTK, _) in zip(model.blocks, mixed(model, batch), strict=True):
        for found, matrix in ((q_BHTK, block.attention.query), (k_BHTK, block.attention.key)):
            expected = matrix(model.embedding(batch)).unflatten(-1, (2, -1)).transpose(1, 2)
            torch.testing.assert_close(found, expected)
    before = mixed(model, batch)[1]
    model.blocks[0].mlp.up.weight.data *= 3
    after = mixed(model, batch)[1]
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[2], after[2])


@pytest.mark.parametrize("name", [*FIXED, "embedding"])
def test_projections_are_trained(name: str) -> None:
    model = made(name)
    logits(model, tokens()).sin().sum().backward()
    assert all(block.attention.query.weight.grad.abs().max() > 0 for block in model.blocks)


@pytest.mark.parametrize("name", [*FIXED, "embedding"])
def test_causality_and_prefixes(name: str) -> None:
    model, batch = made(name), tokens(1)
    changed = batch.clone()
    changed[0, 5] = (changed[0, 5] + 1) % 32
    before = logits(model, batch)
    torch.testing.assert_close(logits(model, changed)[:, :5], before[:, :5], atol=1e-6, rtol=0)
    torch.testing.assert_close(logits(model, batch[:, :3]), before[:, :3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FIXED)
def test_a_longer_input_than_the_sequence_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"qk_source={name} has a sequence of 8 tokens, not of 9"):
        logits(made(name, "position=none"), tokens(1, 9))


def test_a_run_keeps_its_first_training_sequence() -> None:
    proxy = ProxyModule(tiny("qk_source=fixed_sequence"))
    batch = tokens(4, T + 1, seed=3)
    proxy.calibrate(batch)
    assert torch.equal(proxy.model.state_dict()["qk_source.tokens_T"], batch[0, :-1])


@pytest.mark.parametrize("name", [*FIXED, "embedding"])
def test_latent_attention_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(f"qk_source={name}", "layout=mla")
    assert str(error.value) == (
        f"qk_source={name} takes keys and values from different inputs, but layout=mla makes both from one latent: "
        f"use layout=mha or qk_source=stream"
    )


@pytest.mark.parametrize("name", FIXED)
def test_evaluation_beyond_the_sequence_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"eval_lengths=\[1, 2\] goes beyond .* qk_source={name} has"):
        tiny(f"qk_source={name}", "eval_lengths=[1,2]")
    tiny("qk_source=embedding", "eval_lengths=[1,2]")
