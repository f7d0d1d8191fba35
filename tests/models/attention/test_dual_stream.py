"""Two residual streams and maps that keep heads apart."""

from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.attention.dual_stream import Kronecker
from models.attention.mixing.base import Inputs
from tests.conftest import randn, tiny
from tests.models.test_gpt import gpt, logits, tokens

DEEP = ("model.depth=3", "qk_norm=none")
NAMES = ["independent", "kronecker", "dense"]


class TestMaps:
    def test_kronecker(self) -> None:
        made = Kronecker(2)
        made.weight.data = torch.tensor([[1.0, 0.5], [0, 2]])
        assert torch.equal(made(torch.tensor([1.0, 2, 3, 4])), torch.tensor([2.5, 4, 6, 8]))
        torch.testing.assert_close(made(randn(3, 4)), randn(3, 4) @ torch.kron(made.weight, torch.eye(2)).T)

    def test_kronecker_of_the_identity_is_the_identity(self) -> None:
        made = Kronecker(3)
        made.weight.data = torch.eye(3)
        assert torch.equal(made(randn(2, 12)), randn(2, 12))

    def test_independent_is_block_diagonal(self) -> None:
        made: Any = gpt("dual_stream=independent", "model.width=12", "model.heads=3").blocks[0].attention.value
        whole = torch.block_diag(*made.weight.unflatten(0, (3, 4)))
        torch.testing.assert_close(made(randn(2, 5, 12)), randn(2, 5, 12) @ whole.T)
        made.multiplier = 0.5
        torch.testing.assert_close(made(randn(2, 5, 12)), 0.5 * randn(2, 5, 12) @ whole.T)

    @pytest.mark.parametrize(("name", "count"), [("independent", 2 * 16 * 8), ("kronecker", 2 * 2 * 2), ("dense", 512)])
    def test_parameters(self, name: str, count: int) -> None:
        layer: Any = gpt(f"dual_stream={name}").blocks[0].attention
        assert sum(p.numel() for p in (*layer.value.parameters(), *layer.out.parameters())) == count

    @pytest.mark.parametrize("name", ["independent", "kronecker"])
    def test_outputs_start_as_large_as_inputs(self, name: str) -> None:
        """The init axis takes fan-in for what it is: the features, or the heads, that are summed over."""
        layer: Any = gpt(f"dual_stream={name}", "model.width=512", "model.heads=64").blocks[0].attention
        assert layer.value(randn(64, 512)).std().item() == pytest.approx(1, abs=0.15)


def values(model: Any, batch: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """What each block's attention makes values of, and queries and keys of."""
    found: list[tuple[torch.Tensor, ...]] = []
    for block in model.blocks:
        block.attention.register_forward_pre_hook(lambda _, args: found.append((args[0], args[1].source_BTD)))
    model(batch)
    return found


class TestStreams:
    def test_composition(self) -> None:
        """The equations, written out for one set of weights."""
        model: Any = gpt(*DEEP, "dual_stream=kronecker", "position=none")
        batch = tokens()
        token = model.embedding(batch)
        context = torch.zeros_like(token)
        for block in model.blocks:
            a = block.attention
            h = block.attention_norms.input(token + context)
            q, k, v = (a.split(x) for x in (a.query(h), a.key(h), a.value(token)))
            token = token + a.out(a.mix(Inputs(q, k), v).transpose(1, 2).flatten(2))
            context = context + block.mlp(block.mlp_norms.input(token + context))
        expected = model.logits(model.final_norm(token + context))
        torch.testing.assert_close(logits(model, batch), expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("name", NAMES)
    def test_without_attention_the_token_stream_stays_the_embedding(self, name: str) -> None:
        model: Any = gpt(*DEEP, f"dual_stream={name}")
        for block in model.blocks:
            block.attention.out.weight.data.zero_()
        found = values(model, tokens())
        assert all(torch.equal(read, model.embedding(tokens())) for read, _ in found)
        assert not torch.equal(found[0][1], found[1][1])

    def test_without_mlps_both_are_one(self) -> None:
        model: Any = gpt(*DEEP, "dual_stream=dense")
        for block in model.blocks:
            block.mlp.down.weight.data.zero_()
        for block, (read, normed) in zip(model.blocks, values(model, tokens()), strict=True):
            torch.testing.assert_close(block.attention_norms.input(read), normed, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("given", ["placement=pre", "placement=peri", "placement=res_post", "attention=softcap",
                                       "layer_scale=0.5", "attention=differential"])  # fmt: skip
    def test_causality(self, name: str, given: str) -> None:
        model = gpt(*DEEP, f"dual_stream={name}", given)
        one, other = tokens(1), tokens(1)
        other[0, 5] = (other[0, 5] + 1) % 32
        before, after = logits(model, one), logits(model, other)
        torch.testing.assert_close(before[:, :5], after[:, :5], atol=1e-6, rtol=0)
        assert (before[:, 5:] - after[:, 5:]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["placement=post"], "adds to two streams, but placement=post can't keep them apart: use placement=pre"),
        (["attention=mlp"], "needs attention in every block, but attention=mlp has none: use attention=softmax"),
        (["layout=gqa"], "needs values made head by head, but layout=gqa makes them otherwise: use layout=mha"),
        (["qk_source=embedding"], "makes queries and keys from both streams, qk_source=embedding not: "
         "use qk_source=stream"),
        (["share_attention=2"], "makes values from the token stream, but share_attention=2 from the layer's input: "
         "use share_attention=1"),
        (["value_residual=identity"], "makes values from the token stream, but value_residual=identity adds the "
         "first block's: use value_residual=null"),
        (["parametrization=mup"], "has matrices whose fan-in does not follow the width, but parametrization=mup "
         "assumes that it does: use parametrization=standard"),
    ],
)  # fmt: skip
def test_refusals(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(*DEEP, "dual_stream=independent", *overrides)
    assert str(error.value) == f"dual_stream=independent {text} or dual_stream=null"
