"""Attention weights that blocks share."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from tests.conftest import tiny
from tests.models.test_gpt import gpt, logits, tokens

DEEP = ("model.depth=4", "qk_norm=none")


def weights(model: Any, batch: torch.Tensor) -> list[torch.Tensor]:
    """What each block's attention weighs its values with."""
    found: list[torch.Tensor] = []
    for mixer in model.mixers():
        if mixer.rule is not None:
            mixer.rule.register_forward_pre_hook(lambda rule, args: found.append(rule.weights(args[0])))
    model(batch)
    return found


def test_groups_of_one_are_the_model_without() -> None:
    one, plain = gpt(*DEEP, "share_attention=1"), gpt(*DEEP)
    assert torch.equal(logits(one, tokens()), logits(plain, tokens()))


@pytest.mark.parametrize(("group", "expected"), [(2, [0, 0, 2, 2]), (3, [0, 0, 0, 3]), (8, [0, 0, 0, 0])])
@pytest.mark.parametrize("rule", ["softmax", "softcap"])
def test_blocks_of_a_group_have_the_weights_of_its_first(rule: str, group: int, expected: list[int]) -> None:
    found = weights(gpt(*DEEP, f"attention={rule}", f"share_attention={group}"), tokens())
    assert len(found) == 4
    for block, lender in enumerate(expected):
        assert torch.equal(found[block], found[lender])
    starts = sorted(set(expected))
    for one, other in pairwise(starts):
        assert not torch.equal(found[one], found[other])


def test_composition() -> None:
    """W_out (A V) + W_c h, A of the first block, V and h of the second."""
    model = gpt("model.depth=2", "qk_norm=none", "share_attention=2")
    first, second = (block.attention for block in model.blocks)  # type: ignore[union-attr]
    assert {n: tuple(p.shape) for n, p in second.named_parameters()} == {
        f"{name}.weight": (16, 16) for name in ("value", "out", "compensation")
    }
    second.compensation.weight.data = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    (a_BHTT, *_), seen = weights(model, tokens()), []
    second.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    model(tokens())
    ((h_BTD, output_BTD),) = seen
    v_BHTK = second.value(h_BTD).unflatten(-1, (2, -1)).transpose(1, 2)
    expected = second.out((a_BHTT @ v_BHTK).transpose(1, 2).flatten(2)) + second.compensation(h_BTD)
    torch.testing.assert_close(output_BTD, expected, atol=1e-5, rtol=1e-5)
    assert first.query.weight.shape == (16, 16)


def test_compensation_starts_at_zero_and_learns() -> None:
    model = gpt(*DEEP, "share_attention=2")
    logits(model, tokens()).sin().sum().backward()
    for index in (1, 3):
        weight: Any = model.blocks[index].attention.compensation.weight  # type: ignore[union-attr]
        assert not weight.any()
        assert weight.grad.abs().max() > 0


def test_gradients_reach_the_lender_s_queries_through_the_borrowers() -> None:
    model = gpt("model.depth=2", "qk_norm=none", "share_attention=2")
    lender: Any = model.blocks[0].attention
    lender.out.weight.data.zero_()
    logits(model, tokens()).sin().sum().backward()
    assert lender.query.weight.grad.abs().max() > 0


def test_probes_are_of_the_lenders() -> None:
    _, stats = gpt(*DEEP, "share_attention=2")(tokens(), watch=True)
    assert {name.split("/")[1] for name in stats if name.startswith("attention/")} == {"block0", "block2"}


def test_qk_clip_acts_on_the_lenders() -> None:
    from train.optimizers.qk_clip import clip_heads

    model = gpt(*DEEP, "share_attention=2", keep_maxima=True)
    _, stats = model(tokens())
    assert sorted(stats) == ["attention/block0/step_max", "attention/block2/step_max"]
    with torch.no_grad():
        assert clip_heads(model, stats, 1e-3) == 4
    assert model(tokens())[1]["attention/block0/step_max"].max().item() == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("given", ["value_residual=identity", "placement=sub_ln", "placement=hybridnorm",
                                   "placement=deepnorm", "position=alibi", "gate=headwise", "temperature=ssmax",
                                   "sink=token"])  # fmt: skip
def test_causality(given: str) -> None:
    needs = ("qk_norm=layernorm",) if given == "placement=hybridnorm" else ()
    model = gpt(*DEEP, "share_attention=2", given, *needs)
    one, other = tokens(1), tokens(1)
    other[0, 5] = (other[0, 5] + 1) % 32
    before, after = logits(model, one), logits(model, other)
    torch.testing.assert_close(before[:, :5], after[:, :5], atol=1e-6, rtol=0)
    assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["model.depth=1"], "share_attention=2 needs a second block, but model.depth=1: use a deeper model "
         "or share_attention=1"),
        (["layout=gqa"], "share_attention=2 needs one matrix that makes the values, which layout=gqa lacks: "
         "use layout=mha or share_attention=1"),
        (["qk_source=embedding"], "share_attention=2 reuses queries and keys, qk_source=embedding makes them "
         "elsewhere: use qk_source=stream or share_attention=1"),
        (["attention=mlp"], "share_attention=2 needs the same rule in all blocks of a group, but attention=mlp "
         "with its pattern differs between blocks or has no weights: use attention=softmax "
         "attention.pattern=all or share_attention=1"),
        (["sink=logit"], "share_attention=2 hands on queries and keys, but not what sink=logit adds to them: "
         "use sink=none or share_attention=1"),
        (["temperature=ssa"], "share_attention=2 hands on queries and keys, but temperature=ssa acts on values: "
         "use temperature=ssmax or share_attention=1"),
        (["qk_norm=qkv"], "share_attention=2 has blocks without queries and keys, but qk_norm=qkv normalizes them with "
         "values: use qk_norm=layernorm or share_attention=1"),
        (["placement=ngpt", "norm=none"], "share_attention=2 has a matrix that starts at zero, but placement=ngpt "
         "keeps all at unit norm: use placement=pre or share_attention=1"),
        (["reparametrization=sigma"], "share_attention=2 has a matrix that starts at zero, but "
         "reparametrization=sigma may divide by its norm: use reparametrization=none or share_attention=1"),
    ],
)  # fmt: skip
def test_refusals(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(*DEEP, "share_attention=2", *overrides)
    assert str(error.value) == text
