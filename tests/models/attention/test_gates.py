"""Gates of attention's heads. Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width."""

import math
from typing import Any

import pytest
import torch

from models.attention.gates import GATE, Gate
from models.attention.mixing.base import Inputs, LayerShape
from models.attention.mixing.denominator import Gate as OutputGate
from models.gpt import GPT, initialize
from models.layers import Linear
from tests.conftest import choice, largest_difference, randn, tiny

B, H, T, K = 2, 2, 5, 8
D = H * K
V = 32
GATED = [("headwise", {}), ("elementwise", {}), *(("qualcomm", {"form": f}) for f in ("linear", "mlp", "all_features"))]
COUNTS = [D * H, D * D, H * K + H, H * (K * 2 + 2) + H, D * H + H]


def gate(name: str, **changes: Any) -> Gate:
    torch.manual_seed(0)
    built = choice(GATE, name, **changes).build(LayerShape(D, H, K, K**-0.5, T, 0, 1))
    assert built is not None
    return built


def gpt(*overrides: str) -> Any:
    config = tiny(*overrides)
    model = GPT(config, vocab_size=V, context=config.context)
    initialize(model, config, 0)
    return model


def tokens() -> torch.Tensor:
    return torch.randint(V, (2, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "changes"), GATED)
class TestEveryGate:
    def test_half_of_the_heads_where_scores_are_zero(self, name: str, changes: dict[str, Any]) -> None:
        built, mixed_BHTK = gate(name, **changes), randn(B, H, T, K)
        for parameter in built.parameters():
            parameter.data.zero_()
        assert torch.equal(built(mixed_BHTK, randn(B, T, D, seed=1)), 0.5 * mixed_BHTK)

    def test_a_token_is_gated_by_its_own_input(self, name: str, changes: dict[str, Any]) -> None:
        built, mixed_BHTK, x_BTD = gate(name, **changes), randn(B, H, T, K), randn(B, T, D, seed=1).requires_grad_()
        (gradient_BTD,) = torch.autograd.grad(built(mixed_BHTK, x_BTD)[:, :, 2].sum(), x_BTD)
        assert (gradient_BTD[:, 2] != 0).any()
        gradient_BTD[:, 2] = 0
        assert (gradient_BTD == 0).all()

    def test_open_and_finite_at_extremes(self, name: str, changes: dict[str, Any]) -> None:
        built, mixed_BHTK = gate(name, **changes), randn(B, H, T, K)
        x_BTD = (1e4 * randn(B, T, D, seed=1)).requires_grad_()
        out_BHTK = built(mixed_BHTK, x_BTD)
        out_BHTK.sum().backward()
        assert out_BHTK.isfinite().all()
        assert x_BTD.grad is not None
        assert x_BTD.grad.isfinite().all()
        assert (out_BHTK.abs() <= mixed_BHTK.abs()).all()

    def test_bf16(self, name: str, changes: dict[str, Any]) -> None:
        built, mixed_BHTK, x_BTD = gate(name, **changes), randn(B, H, T, K), randn(B, T, D, seed=1)
        expected = built(mixed_BHTK, x_BTD)
        with torch.autocast("cpu", torch.bfloat16):
            found = built(mixed_BHTK.bfloat16(), x_BTD)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)


@pytest.mark.parametrize(("of", "count"), zip(GATED, COUNTS, strict=True))
def test_parameter_count(of: tuple[str, dict[str, Any]], count: int) -> None:
    name, changes = of
    assert sum(p.numel() for p in gate(name, **changes).parameters()) == count


def test_a_score_of_two_fifths() -> None:
    """sigmoid(0.4) times the fourth row of softmax's reference outputs, in float64 by hand."""
    built = gate("headwise")
    built.score.weight.data.zero_()
    built.score.weight.data[0, 0] = 0.4
    x_BTD = torch.zeros(1, 1, D)
    x_BTD[..., 0] = 1
    mixed_BHTK = torch.tensor([0.512673, 1.031468]).expand(1, H, 1, 2)
    out = built(mixed_BHTK, x_BTD)[0, :, 0]
    torch.testing.assert_close(out[0], torch.tensor([0.306931, 0.617527]), atol=1e-6, rtol=0)
    torch.testing.assert_close(out[1], mixed_BHTK[0, 1, 0] / 2)


def test_elementwise_gates_each_feature() -> None:
    built, mixed_BHTK, x_BTD = gate("elementwise"), randn(B, H, T, K), randn(B, T, D, seed=1)
    expected = (x_BTD @ built.score.weight.T).sigmoid() * mixed_BHTK.transpose(1, 2).flatten(2)
    torch.testing.assert_close(built(mixed_BHTK, x_BTD).transpose(1, 2).flatten(2), expected)


class TestQualcomm:
    @pytest.mark.parametrize("form", ["linear", "mlp", "all_features"])
    @pytest.mark.parametrize("pi", [0.25, 0.9])
    def test_starts_at_pi_where_the_input_is_zero(self, form: str, pi: float) -> None:
        mixed_BHTK = randn(B, H, T, K)
        found = gate("qualcomm", form=form, pi_init=pi)(mixed_BHTK, torch.zeros(B, T, D))
        torch.testing.assert_close(found, pi * mixed_BHTK)

    @pytest.mark.parametrize(("form", "sees"), [("linear", 1), ("mlp", 1), ("all_features", 2)])
    def test_a_head_sees_its_slice(self, form: str, sees: int) -> None:
        built, x_BTD = gate("qualcomm", form=form), randn(B, T, D, seed=1).requires_grad_()
        out_BHTK = built(torch.ones(B, H, T, K), x_BTD)
        (gradient_BTD,) = torch.autograd.grad(out_BHTK[:, 0].sum(), x_BTD)
        assert [(part != 0).any().item() for part in gradient_BTD.split(K, -1)] == [True, sees == 2]

    def test_linear_in_each_slice(self) -> None:
        built, mixed_BHTK, x_BTD = gate("qualcomm"), randn(B, H, T, K), randn(B, T, D, seed=1)
        weight_HK = built.score.score.weight
        for h in range(H):
            score_BT = x_BTD[..., h * K : (h + 1) * K] @ weight_HK[h] + math.log(1 / 3)
            torch.testing.assert_close(built(mixed_BHTK, x_BTD)[:, h], mixed_BHTK[:, h] * score_BT.sigmoid()[..., None])

    def test_mlp_has_a_quarter_of_the_head_in_relus(self) -> None:
        built, x_BTD = gate("qualcomm", form="mlp"), randn(B, T, D, seed=1)
        first, _, last = built.score.score
        hidden = (x_BTD[..., K:] @ first.weight[2:].T).relu()
        assert hidden.shape[-1] == K // 4
        expected = (hidden @ last.weight[1] + math.log(1 / 3)).sigmoid()
        found = built(torch.ones(B, H, T, K), x_BTD)[:, 1]
        torch.testing.assert_close(found, expected[..., None].expand_as(found))


class TestInTheModel:
    @pytest.mark.parametrize("name", ["headwise", "elementwise", "qualcomm"])
    def test_gates_stand_between_mixing_and_output(self, name: str) -> None:
        """The logits of a pre-norm block, by hand, with the gate's input behind the norm."""
        model = gpt(f"gate={name}")
        block, x = model.blocks[0], model.embedding.weight[tokens()]
        a, h = block.attention, block.attention_norms.input(x)
        q, k, v = (p(h).unflatten(-1, (a.heads, -1)).transpose(1, 2) for p in (a.query, a.key, a.value))
        q, k = a._positions[0].rotate(*a.qk_norm(q, k))
        x = x + a.out(a.gate(a.mix.weights(Inputs(q, k)) @ v, h).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.mlp_norms.input(x))
        expected = model.final_norm(x) @ model.head.weight.T
        torch.testing.assert_close(model(tokens())[0], expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("name", ["headwise", "elementwise", "qualcomm"])
    def test_causal(self, name: str) -> None:
        model, before, after = gpt(f"gate={name}"), tokens(), tokens()
        after[:, 5] = (after[:, 5] + 1) % V
        one, other = model(before)[0], model(after)[0]
        assert torch.equal(one[:, :5], other[:, :5])
        assert (one[:, 5:] != other[:, 5:]).any()

    @pytest.mark.parametrize("name", ["headwise", "qualcomm"])
    def test_an_open_gate_is_none(self, name: str) -> None:
        plain, gated = gpt(), gpt(f"gate={name}")
        gated.load_state_dict(plain.state_dict(), strict=False)
        a = gated.blocks[0].attention
        for parameter in a.gate.parameters():
            parameter.data.zero_()
        a.out.weight.data *= 2  # a gate of 1/2
        torch.testing.assert_close(gated(tokens())[0], plain(tokens())[0], atol=1e-6, rtol=1e-5)

    def test_none_has_no_parameters(self) -> None:
        assert gpt().blocks[0].attention.gate is None
        assert largest_difference(gpt().state_dict(), gpt("gate=none").state_dict()) == 0


def test_a_gate_s_sigmoid_is_fp32_under_autocast() -> None:
    """Its score is a layer's product, in bf16; near 1 a sigmoid in bf16 has steps of 1/256."""
    score = Linear(16, 2)
    score.weight.data = randn(2, 16)
    x_BTD, ones = randn(3, 5, 16, seed=1), torch.ones(3, 2, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = Gate(2, score)(ones, x_BTD)
        expected = score(x_BTD).float().sigmoid()
    assert torch.equal(found, expected.transpose(1, 2)[..., None].expand(3, 2, 5, 4))


def test_gates_of_denominators_are_fp32_under_autocast() -> None:
    gate = OutputGate(16, 2)
    gate.project.weight.data = randn(2, 16)
    x_BTD = randn(3, 5, 16, seed=1)
    expected = gate(x_BTD)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gate(x_BTD), expected)
