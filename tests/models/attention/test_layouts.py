"""Layouts of queries, keys and values.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width, G groups of heads.
"""

import math
from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.attention.layer import Attention
from models.attention.mixing.base import MixingRule
from models.carry import Carry
from models.gpt import GPT
from models.positions import Rotary, RotaryConfig
from models.probes import largest_logit
from tests.conftest import randn, tiny
from tests.models.test_gpt import gpt, logits, tokens
from train.optimizers.qk_clip import clip_heads

B, H, T, D = 2, 4, 8, 32
K = D // H
WIDE = ("model.width=32", "model.heads=4", "qk_norm=none")


def attention(*overrides: str, keep_maxima: bool = False) -> tuple[GPT, Any]:
    model = gpt(*WIDE, *overrides, keep_maxima=keep_maxima)
    return model, model.blocks[0].attention


def seen(layer: Attention, x_BTD: torch.Tensor) -> list[torch.Tensor]:
    """The queries, keys and values that the mixing rule gets."""
    found: list[torch.Tensor] = []
    hook = layer.mix.register_forward_pre_hook(lambda _, args: found.extend([*args[0][:2], args[1]]))
    layer(x_BTD, Carry())
    hook.remove()
    return found


class TestGroupedQuery:
    def test_as_many_groups_as_heads_is_multi_head(self) -> None:
        one, other = (gpt(*WIDE, *given) for given in (("layout=gqa", "layout.kv_heads=4"), ("layout=mha",)))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        assert torch.equal(logits(one, tokens()), logits(other, tokens()))

    @pytest.mark.parametrize("groups", [1, 2])
    def test_is_multi_head_with_rows_said_twice(self, groups: int) -> None:
        model, _ = attention("layout=gqa", f"layout.kv_heads={groups}", "model.depth=2")
        whole = gpt(*WIDE, "model.depth=2")
        state = model.state_dict()
        for name, tensor in state.items():
            if name.endswith(("attention.key.weight", "attention.value.weight")):
                state[name] = tensor.unflatten(0, (groups, K)).repeat_interleave(H // groups, 0).flatten(0, 1)
        whole.load_state_dict(state)
        torch.testing.assert_close(logits(model, tokens()), logits(whole, tokens()), atol=1e-5, rtol=0)

    def test_head_h_has_the_key_of_group_floor_h_over_the_size_of_a_group(self) -> None:
        _, layer = attention("layout=gqa", "layout.kv_heads=2", "position=none")
        x_BTD = randn(B, T, D)
        _, k_BHTK, v_BHTK = seen(layer, x_BTD)
        for found_BHTK, matrix in ((k_BHTK, layer.key), (v_BHTK, layer.value)):
            own_BGTK = (x_BTD @ matrix.weight.T).unflatten(-1, (2, K)).transpose(1, 2)
            for head, group in enumerate([0, 0, 1, 1]):
                torch.testing.assert_close(found_BHTK[:, head], own_BGTK[:, group])

    @pytest.mark.parametrize("groups", [1, 2])
    def test_parameters(self, groups: int) -> None:
        _, layer = attention("layout=gqa", f"layout.kv_heads={groups}")
        assert sum(p.numel() for p in layer.parameters()) == 2 * D * D + 2 * D * groups * K

    @pytest.mark.parametrize("given", ["placement=hybridnorm", "qk_norm=qkv"])
    def test_values_are_normalized_by_group(self, given: str) -> None:
        _, layer = attention("layout=gqa", "qk_norm=layernorm", given)
        _, _, v_BHTK = seen(layer, randn(B, T, D))
        torch.testing.assert_close(v_BHTK.var(-1, correction=0), torch.ones(B, H, T), atol=1e-2, rtol=0)


class TestLatent:
    def test_composition(self) -> None:
        """DeepSeek-V2, section 2.1, written out for one set of weights; 2 of 8 features turn."""
        _, layer = attention("layout=mla", "layout.rope=0.25", "layout.query_rank=0.5")
        x_BTD, rope = randn(B, T, D), Rotary(2, T, RotaryConfig())
        shapes = {n: tuple(p.shape) for n, p in layer.named_parameters()}
        assert shapes == {
            "query.weight": (D, 16), "key.weight": (H * 6, 8), "value.weight": (D, 8), "out.weight": (D, D),
            "query_down.weight": (16, D), "query_norm.weight": (16,), "latent.weight": (8, D),
            "latent_norm.weight": (8,), "rope_key.weight": (2, D),
        }  # fmt: skip

        def unit(y: torch.Tensor) -> torch.Tensor:
            return y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()

        c_q, c_kv = unit(x_BTD @ layer.query_down.weight.T), unit(x_BTD @ layer.latent.weight.T)
        shared = rope.turn(x_BTD @ layer.rope_key.weight.T)
        heads = []
        for h in range(H):
            q = c_q @ layer.query.weight[h * K : (h + 1) * K].T
            k = c_kv @ layer.key.weight[h * 6 : (h + 1) * 6].T
            z = (q[..., :6] @ k.mT + rope.turn(q[..., 6:]) @ shared.mT) / math.sqrt(K)
            z = z.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
            heads.append(z.softmax(-1) @ (c_kv @ layer.value.weight[h * K : (h + 1) * K].T))
        expected = torch.cat(heads, -1) @ layer.out.weight.T
        torch.testing.assert_close(layer(x_BTD, Carry()), expected, atol=1e-5, rtol=1e-5)

    def test_all_that_keys_and_values_need_is_the_latent_and_the_shared_key(self) -> None:
        """Keys absorbed into queries: products with the latent itself, of rank latent + rope features a token."""
        _, layer = attention("layout=mla", "position=none")
        still = K - layer.rope_dim
        x_BTD = randn(B, T, D)
        q_BHTK, k_BHTK, _ = seen(layer, x_BTD)
        c_BTR = layer.latent_norm(layer.latent(x_BTD))
        w_HKR = layer.key.weight.unflatten(0, (H, still))
        absorbed_BHTR = torch.einsum("bhtk,hkr->bhtr", q_BHTK[..., :still], w_HKR)
        z_BHTT = absorbed_BHTR @ c_BTR[:, None].mT + q_BHTK[..., still:] @ layer.rope_key(x_BTD)[:, None].mT
        torch.testing.assert_close(q_BHTK @ k_BHTK.mT, z_BHTT, atol=1e-5, rtol=1e-5)

    def test_queries_of_x(self) -> None:
        _, layer = attention("layout=mla", "layout.query_rank=null")
        assert not hasattr(layer, "query_down")
        assert layer.query.weight.shape == (D, D)
        latent, rope = round(0.25 * D), layer.rope_dim
        count = 2 * D * D + D * (latent + rope) + latent * (H * (K - rope) + D) + latent
        assert sum(p.numel() for p in layer.parameters()) == count

    def test_positions_turn_the_last_features_alone(self) -> None:
        _, layer = attention("layout=mla")
        _, still = attention("layout=mla", "position=none")
        still.load_state_dict(layer.state_dict())
        x_BTD = randn(B, T, D)
        assert layer.rope_dim == 2
        for turned, plain in zip(seen(layer, x_BTD)[:2], seen(still, x_BTD)[:2], strict=True):
            torch.testing.assert_close(turned[..., :-2], plain[..., :-2])
            assert (turned[:, :, 1:, -2:] - plain[:, :, 1:, -2:]).abs().max() > 1e-2
            torch.testing.assert_close(turned[..., -2:].norm(dim=-1), plain[..., -2:].norm(dim=-1))

    @pytest.mark.parametrize(("head_dim", "rope"), [(4, 2), (8, 2), (16, 6), (32, 10), (64, 22), (192, 64)])
    def test_features_that_turn(self, head_dim: int, rope: int) -> None:
        from models.attention.layouts import LatentConfig

        assert LatentConfig().rope_dim(head_dim) == rope

    @pytest.mark.parametrize("position", ["rope", "alibi", "learned", "none"])
    def test_every_position(self, position: str) -> None:
        model = gpt(*WIDE, "layout=mla", f"position={position}")
        one, other = tokens(1), tokens(1)
        other[0, -1] = (other[0, -1] + 1) % 32
        before, after = logits(model, one), logits(model, other)
        torch.testing.assert_close(before[:, :-1], after[:, :-1], atol=1e-6, rtol=0)
        assert (before[:, -1] - after[:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("layout", ["mha", "gqa", "mla"])
@pytest.mark.parametrize("position", ["rope", "none"])
def test_qk_clip_brings_the_largest_logit_to_tau(layout: str, position: str) -> None:
    model, layer = attention(f"layout={layout}", f"position={position}", "model.depth=2", keep_maxima=True)
    batch = tokens(4)
    _, stats = model(batch)
    s_H = stats["attention/block0/step_max"].clone()
    tau = float(s_H.median())
    assert s_H.min() < tau < s_H.max()
    before: dict[str, torch.Tensor] = {n: p.detach().clone() for n, p in layer.named_parameters()}
    with torch.no_grad():
        clip_heads(model, stats, tau)
    _, stats = model(batch)
    torch.testing.assert_close(stats["attention/block0/step_max"], s_H.clamp_max(tau), atol=1e-5, rtol=1e-5)
    # The heads below are left alone to the bit.
    rows_HKI = layer.query.weight.unflatten(0, (H, K))
    below_H = s_H <= tau
    assert torch.equal(rows_HKI[below_H], before["query.weight"].unflatten(0, (H, K))[below_H])


@pytest.mark.parametrize("layout", ["gqa", "mla"])
@pytest.mark.parametrize("rule", ["softmax", "relu_squared"])
def test_probes_are_of_all_heads(layout: str, rule: str) -> None:
    model, layer = attention(f"layout={layout}", f"attention={rule}")
    _, stats = model(tokens(), watch=True)
    assert all(stats[f"attention/block0/{n}"].shape == (H,) for n in ("logit_max", "entropy", "q_norm"))
    mix: MixingRule = layer.mix
    q_BHTK, k_BHTK, _ = seen(layer, model.blocks[0].attention_norms.input(model.embedding(tokens())))  # type: ignore[union-attr, operator]
    torch.testing.assert_close(stats["attention/block0/logit_max"], largest_logit(q_BHTK, k_BHTK, mix.scale))


@pytest.mark.parametrize("layout", ["mha", "gqa"])
def test_the_weights_bound_the_logits(layout: str) -> None:
    model, layer = attention(f"layout={layout}")
    _, stats = model(tokens(), watch=True)
    found_H = stats["attention/block0/weight_bound"]
    query_HKD, key_GKD = (made.weight.detach().unflatten(0, (-1, K)) for made in (layer.query, layer.key))
    key_HKD = key_GKD.repeat_interleave(H // len(key_GKD), 0)
    expected_H = torch.linalg.matrix_norm(query_HKD, 2) * torch.linalg.matrix_norm(key_HKD, 2) / math.sqrt(K)
    torch.testing.assert_close(found_H, expected_H)
    x_BTD = model.blocks[0].attention_norms.input(model.embedding(tokens()))  # type: ignore[union-attr, operator]
    assert (stats["attention/block0/logit_max"] <= found_H * x_BTD.norm(dim=-1).max() ** 2).all()


@pytest.mark.parametrize("given", ["layout=mla", "qk_norm=layernorm", "temperature=ssmax"])
def test_no_bound_where_more_than_positions_follows_the_projections(given: str) -> None:
    _, stats = attention(given)[0](tokens(), watch=True)
    assert "attention/block0/weight_bound" not in stats


@pytest.mark.parametrize("layout", ["gqa", "mla"])
@pytest.mark.parametrize("residual", ["identity", "learnable"])
def test_value_residual(layout: str, residual: str) -> None:
    """Block 1 attends over half of the first block's values and half of its own."""
    model, _ = attention(f"layout={layout}", f"value_residual={residual}", "model.depth=2")
    layer: Any = model.blocks[1].attention
    x_BTD, first_BHTK = randn(B, T, D), randn(B, H, T, K, seed=1)
    found: list[torch.Tensor] = []
    layer.mix.register_forward_pre_hook(lambda _, args: found.append(args[1]))
    layer(x_BTD, Carry(first_BHTK=first_BHTK))
    _, _, own_BHTK = layer.project(x_BTD, x_BTD)
    torch.testing.assert_close(found[0], 0.5 * (first_BHTK + own_BHTK))


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["layout=gqa", "layout.kv_heads=3"], "layout.kv_heads=3 does not divide model.heads=4: "
         "layout.kv_heads=2 would"),
        (["layout=gqa", "layout.kv_heads=8"], "layout.kv_heads=8 does not divide model.heads=4: "
         "layout.kv_heads=4 would"),
        (["layout=gqa", "qk_norm=layernorm_model"], "layout=gqa has fewer keys than queries, but "
         "qk_norm=layernorm_model needs equally many: use qk_norm=layernorm or layout=mha"),
        (["layout=mla", "model.heads=16"], "layout=mla rotates 2 of 2 features per head with rope=0.333333 and "
         "model.heads=16, which leaves none unrotated: use fewer heads or layout=mha"),
        (["layout=mla", "placement=ngpt", "norm=none"], "layout=mla has matrices that neither read nor write the "
         "stream, but placement=ngpt constrains vectors of the stream: use placement=pre or layout=mha"),
    ],
)  # fmt: skip
def test_refusals(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(*WIDE, *overrides)
    assert str(error.value) == text
