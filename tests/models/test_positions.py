"""Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width."""

import math

import pytest
import torch

from conf.axis import ConfigError, import_all
from models.attention.layer import Attention, Parts
from models.attention.mixing.softmax import Softmax
from models.attention.qk_norm import QK_NORM
from models.carry import Carry
from models.positions import POSITION, Positions
from tests.conftest import choice, randn, tiny

import_all("models.attention.mixing")

B, H, T, K = 2, 4, 16, 8
D = H * K


def positions(name: str, heads: int = H, context: int = T, **changes: float) -> Positions:
    return choice(POSITION, name, **changes).build(heads * K, heads, context)


class TestRotary:
    @pytest.mark.parametrize("base", [100.0, 10_000.0, 500_000.0])
    def test_pairs_turn_as_complex_numbers_do(self, base: float) -> None:
        """(x_i + i x_{i+K/2}) exp(i t base^(-2i/K)) at position t: Su et al. 2021, eq. 14, in the half-split layout."""
        x_BHTK = randn(B, H, T, K, dtype=torch.float64)
        frequency = torch.tensor([base ** (-2 * i / K) for i in range(K // 2)], dtype=torch.float64)
        angle_TF = torch.arange(T, dtype=torch.float64)[:, None] * frequency
        turned = torch.complex(x_BHTK[..., : K // 2], x_BHTK[..., K // 2 :]) * torch.exp(1j * angle_TF)
        expected = torch.cat([turned.real, turned.imag], -1).float()
        q_BHTK, k_BHTK = positions("rope", base=base).rotate(x_BHTK, 2 * x_BHTK)
        torch.testing.assert_close(q_BHTK, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(k_BHTK, 2 * expected, atol=1e-6, rtol=1e-5)

    def test_logits_depend_on_the_distance_alone(self) -> None:
        q, k = (randn(1, 1, 1, K, seed=s).expand(1, 1, T, K) for s in (1, 2))
        q, k = positions("rope").rotate(q, k)
        logits_TT = (q @ k.mT)[0, 0]
        for distance in range(-T + 1, T):
            diagonal = logits_TT.diagonal(distance)
            assert float(diagonal.max() - diagonal.min()) < 1e-5
        assert float(logits_TT[0].std()) > 0.1

    def test_norms_stay(self) -> None:
        q, k = randn(B, H, T, K, seed=1), randn(B, H, T, K, seed=2)
        for before, after in zip((q, k), positions("rope").rotate(q, k), strict=True):
            torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1))

    def test_the_first_position_does_not_turn(self) -> None:
        q = randn(B, H, T, K)
        assert torch.equal(positions("rope").rotate(q, q)[0][:, :, 0], q[:, :, 0])

    def test_angles_are_exact_far_from_the_start(self) -> None:
        """Pair 1 turns by base^(-1/4) = 0.1 a token; a table computed in fp32 is 5e-5 off at position 32767."""
        turned, _ = positions("rope", context=32768).rotate(*(torch.eye(K)[1:2].expand(32768, K) for _ in range(2)))
        assert turned[-1, 1].item() == pytest.approx(math.cos(3276.7), abs=1e-6)
        assert turned[-1, 1 + K // 2].item() == pytest.approx(math.sin(3276.7), abs=1e-6)

    def test_works_in_fp32_for_bf16_inputs(self) -> None:
        q = randn(B, H, T, K, dtype=torch.bfloat16)
        found, _ = positions("rope").rotate(q, q)
        assert found.dtype == torch.float32
        assert torch.equal(found, positions("rope").rotate(q.float(), q)[0])

    def test_neither_bias_nor_embedding_nor_parameters(self) -> None:
        rope, x_BTD = positions("rope"), randn(B, T, D)
        assert rope.bias(T) is None
        assert rope.embed(x_BTD) is x_BTD
        assert list(rope.parameters()) == []
        assert rope.state_dict() == {}

    def test_odd_head_dimension_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"position=rope needs an even head dimension.*position=alibi"):
            tiny("model.width=9", "model.heads=3")


class TestALiBi:
    @pytest.mark.parametrize(
        ("heads", "slopes"),
        # Press et al. 2022, section 3: 1/2 ... 1/2^8 for 8 heads, and for 16 the geometric means between them.
        [(8, [2**-h for h in range(1, 9)]), (16, [2 ** (-h / 2) for h in range(1, 17)]), (1, [2**-8])],
    )
    def test_slopes(self, heads: int, slopes: list[float]) -> None:
        bias_HTT = positions("alibi", heads).bias(T)
        assert bias_HTT is not None
        distance_TT = (torch.arange(T)[:, None] - torch.arange(T)).float()
        expected = -torch.tensor(slopes)[:, None, None] * distance_TT
        torch.testing.assert_close(bias_HTT, expected, rtol=1e-6, atol=0)

    def test_shorter_sequences_get_the_corner(self) -> None:
        alibi = positions("alibi")
        assert torch.equal(alibi.bias(5), alibi.bias(T)[:, :5, :5])  # type: ignore[index]

    def test_neither_rotation_nor_embedding_nor_parameters(self) -> None:
        alibi, x, q = positions("alibi"), randn(B, T, D), randn(B, H, T, K)
        assert alibi.embed(x) is x
        assert alibi.rotate(q, q) == (q, q)
        assert list(alibi.parameters()) == []
        assert alibi.state_dict() == {}

    def test_logits_get_the_bias(self) -> None:
        """With zero queries the weights are softmax(-slope distance), and the largest logit is 0, on the diagonal."""
        rule = Softmax(K**-0.5)
        no_norm = choice(QK_NORM, "none").build(heads=H, head_dim=K, context=T)
        attention = Attention(D, H, Parts(mix=rule, qk_norm=no_norm, positions=positions("alibi")))
        attention.query.weight.data.zero_()
        attention.value.weight.data.copy_(torch.eye(D))
        attention.out.weight.data.copy_(torch.eye(D))
        x_BTD = randn(B, T, D)
        found = attention(x_BTD, carry := Carry(watch=True))
        for h in range(H):
            slope, heads = 2 ** (-8 * (h + 1) / H), slice(h * K, (h + 1) * K)
            for t in (0, 3, T - 1):
                weights = torch.softmax(-slope * torch.arange(t, -1, -1.0), 0)
                torch.testing.assert_close(found[0, t, heads], weights @ x_BTD[0, : t + 1, heads], atol=1e-5, rtol=0)
        assert torch.equal(carry.stats["attention/block0/logit_max"], torch.zeros(H))


class TestLearned:
    def test_adds_a_row_a_position(self) -> None:
        learned, x_BTD = positions("learned"), randn(B, T, D)
        (rows_TD,) = learned.parameters()
        assert rows_TD.shape == (T, D)
        assert torch.equal(learned.embed(x_BTD), x_BTD + rows_TD)
        assert torch.equal(learned.embed(x_BTD[:, :5]), x_BTD[:, :5] + rows_TD[:5])

    def test_neither_rotation_nor_bias(self) -> None:
        q = randn(B, H, T, K)
        assert positions("learned").rotate(q, q) == (q, q)
        assert positions("learned").bias(T) is None


def test_none_adds_nothing() -> None:
    none, x, q, k = positions("none"), randn(B, T, D), randn(B, H, T, K), randn(B, H, T, K, seed=1)
    assert none.embed(x) is x
    rotated = none.rotate(q, k)
    assert rotated[0] is q
    assert rotated[1] is k
    assert none.bias(T) is None
    assert list(none.parameters()) == list(none.buffers()) == []


@pytest.mark.parametrize("name", sorted(POSITION.choices))
def test_order_is_seen_through_positions_alone(name: str) -> None:
    """Swapping two earlier tokens changes the last output, unless there are no positions."""
    torch.manual_seed(0)
    made = positions(name)
    rule = Softmax(K**-0.5)
    no_norm = choice(QK_NORM, "none").build(heads=H, head_dim=K, context=T)
    attention = Attention(D, H, Parts(mix=rule, qk_norm=no_norm, positions=made))
    x_BTD = randn(B, T, D)
    swapped_BTD = x_BTD[:, [1, 0, *range(2, T)]]
    last, last_swapped = (attention(made.embed(x), Carry())[:, -1] for x in (x_BTD, swapped_BTD))
    difference = (last_swapped - last).abs().max()
    assert difference < 1e-6 if name == "none" else difference > 1e-3


class TestGiraffe:
    """Frequencies of abacusai/Long-Context at a head dimension of 8 and base 10,000."""

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, [1, 0.1, 0.01, 0.001]),
            ({"scale": 4.0}, [0.25, 0.025, 0.0025, 0.00025]),
            ({"power": 1.0}, [1, 0.075, 0.005, 0.00025]),
            ({"power": 0.1}, [1, 0.097164, 0.009330, 0.000871]),
            ({"truncate": 64}, [1, 0.1, 0, 0]),
            ({"truncate": 128}, [1, 0.1, 0.003068, 0]),
        ],
    )
    def test_frequencies(self, fields: dict[str, float], expected: list[float]) -> None:
        found = choice(POSITION, "rope", **fields).frequencies(8)
        assert found.tolist() == pytest.approx(expected, abs=1e-6)

    def test_a_scale_of_two_is_half_the_position(self) -> None:
        plain, scaled = (choice(POSITION, "rope", scale=s).build(16, 2, 9) for s in (1.0, 2.0))
        q = randn(1, 2, 9, 8)
        torch.testing.assert_close(scaled.rotate(q, q)[0][:, :, 8], plain.rotate(q[:, :, [8] * 5], q)[0][:, :, 4])
