"""An MLP in the place of attention."""

from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.carry import Carry
from tests.conftest import largest_difference, randn, tiny
from tests.models.test_gpt import gpt, logits, tokens

KNOBS: dict[str, str] = {}


def test_it_is_a_gated_mlp_that_mixes_no_tokens() -> None:
    model = gpt("attention=mlp", "model.width=24", "model.heads=2")
    layer: Any = model.blocks[0].attention
    x_BTD = randn(2, 8, 24)
    gate, up, down = (layer.mlp.get_parameter(f"{name}.weight") for name in ("gate", "up", "down"))
    expected = (torch.nn.functional.silu(x_BTD @ gate.T) * (x_BTD @ up.T)) @ down.T
    torch.testing.assert_close(layer(x_BTD, Carry()), expected)
    one, other = tokens(1), tokens(1)
    other[0, 3] = (other[0, 3] + 1) % 32
    differ = (logits(model, one) - logits(model, other)).abs().amax((0, 2)) > 0
    assert differ.tolist() == [i == 3 for i in range(8)]


@pytest.mark.parametrize(("width", "exact"), [(24, True), (48, True), (64, False)])
def test_parameters_are_those_of_attention(width: int, exact: bool) -> None:
    layer: Any = gpt("attention=mlp", f"model.width={width}").blocks[0].attention
    count, attention = sum(p.numel() for p in layer.parameters()), 4 * width**2
    assert count % (3 * width) == 0
    assert abs(count - attention) <= 1.5 * width
    assert (count == attention) == exact


def test_probes_are_of_the_blocks_that_attend() -> None:
    _, stats = gpt("attention=mlp", "attention.pattern=odd", "model.depth=3")(tokens(), watch=True)
    assert {name.split("/")[1] for name in stats if name.startswith("attention/")} == {"block1"}
    _, none = gpt("attention=mlp")(tokens(), watch=True)
    assert not [name for name in none if name.startswith("attention/")]


def test_the_last_matrix_counts_as_residual() -> None:
    """As that of an MLP: GPT-2's init lowers it."""
    wide = ("attention=mlp", "init=gpt2", "init.std=0.1", "model.width=96", "model.depth=2")
    layer: Any = gpt(*wide).blocks[0].attention
    assert layer.mlp.down.weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert layer.mlp.up.weight.std().item() == pytest.approx(0.1, rel=0.05)


def test_a_pattern_leaves_the_other_blocks_as_they_are() -> None:
    hybrid, plain = (dict(gpt(*given, "model.depth=2").blocks[1].named_parameters())  # type: ignore[union-attr]
                     for given in (("attention=mlp", "attention.pattern=first"), ()))  # fmt: skip
    assert largest_difference({k: v * 0 for k, v in hybrid.items()}, {k: v * 0 for k, v in plain.items()}) == 0


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["value_residual=identity"], "attention=mlp has blocks without values, but value_residual=identity "
         "adds to them: use value_residual=null or attention=softmax"),
        (["placement=deepnorm"], "attention=mlp has blocks without projections, but placement=deepnorm changes them: "
         "use placement=pre or attention=softmax"),
        (["placement=sub_ln"], "attention=mlp has blocks without projections, but placement=sub_ln changes them: "
         "use placement=pre or attention=softmax"),
        (["optimizer.qk_clip=1", "qk_norm=none"], "optimizer.qk_clip=1 scales logits q k^T, which attention=mlp "
         "doesn't have: use attention=softmax or qk_clip=null"),
    ],
)  # fmt: skip
def test_refusals_of_blocks(overrides: list[str], text: str) -> None:
    for given in ((), ("attention.pattern=first", "model.depth=2")):
        with pytest.raises(ConfigError) as error:
            tiny("attention=mlp", *given, *overrides)
        assert str(error.value) == text


@pytest.mark.parametrize("given", ["layout=gqa", "qk_source=embedding", "temperature=ssmax", "sink=logit",
                                   "gate=headwise"])  # fmt: skip
def test_what_acts_on_attention_needs_some(given: str) -> None:
    with pytest.raises(ConfigError, match=f"attention=mlp has no attention that {given} could act on"):
        tiny("attention=mlp", given)
    tiny("attention=mlp", "attention.pattern=first", "model.depth=2", given)
