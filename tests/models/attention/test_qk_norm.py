"""Bounds, vectors and invariances of the norms of queries and keys.

Shape suffixes: B batch, H heads, T tokens, K head dimension, D model width.
"""

import math

import pytest
import torch
from torch import nn

from conf.axis import import_all
from models.attention.layer import Attention, Parts
from models.attention.mixing.softmax import Softmax
from models.attention.qk_norm import QK_NORM
from models.carry import Carry
from models.positions import POSITION
from tests.conftest import choice, randn

import_all("models.attention.mixing")

B, H, T, K = 2, 2, 8, 16
NORMS = ["layernorm", "layernorm_model", "qkv", "rmsnorm", "l2", "fixed"]


def norm(name: str, head_dim: int = K, context: int = T, **changes: float) -> nn.Module:
    return choice(QK_NORM, name, **changes).build(heads=H, head_dim=head_dim, context=context)


def logits(normalize: nn.Module, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    q, k = normalize(q, k)
    return q @ k.mT / math.sqrt(q.shape[-1])


def attention_layer(name: str, position: str = "rope") -> Attention:
    torch.manual_seed(0)
    rule = Softmax(K**-0.5)
    positions = choice(POSITION, position).build(H * K, H, T)
    return Attention(H * K, H, Parts(mix=rule, qk_norm=norm(name), positions=positions))


Q = torch.tensor([[1, 0], [0.5, -1], [2, 1], [-1, 0.5]])
KEYS = torch.tensor([[0.5, 1], [1, -0.5], [-1, 2], [0.3, 0.3]])


def test_rms_vector() -> None:
    """Last row of the logits and weights of four tokens of dimension 2, in float64 by hand; unit weight, eps 1e-6."""
    row = logits(norm("rmsnorm", 2), Q, KEYS)[3]
    torch.testing.assert_close(row, torch.tensor([0, -1.414211, 1.131370, -0.447211]), atol=2e-6, rtol=0)
    weights = torch.tensor([0.200705, 0.048795, 0.622167, 0.128333])
    torch.testing.assert_close(row.softmax(-1), weights, atol=1e-6, rtol=0)


def test_l2_vector() -> None:
    """Henry et al. 2020, eq. 2: g times the cosine, without 1/sqrt(head_dim)."""
    normalize = norm("l2", 2, 64)
    row = logits(normalize, Q, KEYS)[3] / normalize.gain
    torch.testing.assert_close(row, torch.tensor([0, -1, 0.8, -0.316228]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("length", "gain"), [(64, 11.977280), (1024, 19.998590), (2048, 21.999295)])
def test_l2_gain_starts_at_log2_of_the_number_of_pairs(length: int, gain: float) -> None:
    """log2(L^2 - L): Henry et al. 2020, section 3."""
    assert norm("l2", K, length).gain.item() == pytest.approx(gain, abs=1e-5)


@pytest.mark.parametrize("length", [1, 2])
def test_l2_gain_is_finite_for_the_shortest_contexts(length: int) -> None:
    assert norm("l2", K, length).gain.item() == 1.0


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4])
def test_logits_are_bounded(scale: float) -> None:
    """With unit weights |logit| <= sqrt(head_dim) by Cauchy-Schwarz, and <= g for l2. The first key is its query."""
    q, k = scale * randn(B, H, T, K, seed=1), scale * randn(B, H, T, K, seed=2)
    k[:, :, 0] = q[:, :, 0]
    for name, bound in (
        ("layernorm", math.sqrt(K)),
        ("rmsnorm", math.sqrt(K)),
        ("qkv", math.sqrt(K)),
        ("l2", math.log2(T * T - T)),
        ("fixed", math.sqrt(K)),
    ):
        largest = logits(norm(name), q, k).abs().max().item()
        assert largest <= bound * (1 + 1e-5), name
        assert largest >= bound * 0.95, name


class TestOverTheModelDimension:
    """Wortsman et al. 2023, Fig. E.8."""

    def test_it_is_layer_norm_of_what_is_projected(self) -> None:
        normalize, x = norm("layernorm_model"), randn(B, T, H * K) + 2
        normalize.query.weight.data = torch.linspace(0.5, 2, H * K)
        heads = x.unflatten(-1, (H, K)).transpose(1, 2)
        q, k = (found.transpose(1, 2).flatten(2) for found in normalize(heads, heads))
        expected = nn.functional.layer_norm(x, (H * K,), None, None, 1e-6)
        torch.testing.assert_close(k, expected)
        torch.testing.assert_close(q, expected * normalize.query.weight)

    def test_heads_keep_their_relative_size(self) -> None:
        """Unlike head by head, where each has the same."""
        q = randn(B, H, T, K) * torch.tensor([1.0, 5.0])[:, None, None]
        for name, low, high in (("layernorm_model", 3, 8), ("layernorm", 0.999, 1.001)):
            first, second = norm(name)(q, q)[0].square().mean((0, 2, 3)).sqrt()
            assert low < second / first < high

    def test_as_many_scales_as_the_model_is_wide(self) -> None:
        assert [tuple(p.shape) for p in norm("layernorm_model").parameters()] == [(H * K,), (H * K,)]

    def test_eps_is_added_to_the_variance(self) -> None:
        x = torch.tensor([1.0, -1.0]).repeat(K // 2).expand(B, H, T, K)
        torch.testing.assert_close(norm("layernorm_model", eps=3.0)(x, x)[0], x / 2)


class TestQKV:
    """Rybakov et al. 2024, QKV_norm."""

    def test_output_does_not_depend_on_the_size_of_the_values(self) -> None:
        x = randn(B, T, H * K)
        for name, same in (("qkv", True), ("layernorm", False)):
            attention = attention_layer(name)
            before = attention(x, Carry())
            attention.value.weight.data *= 10
            torch.testing.assert_close(attention(x, Carry()), before if same else 10 * before, atol=1e-5, rtol=1e-4)

    def test_values_are_layer_normed_head_by_head(self) -> None:
        attention, x = attention_layer("qkv"), randn(B, T, H * K)
        attention.qk_norm.value.weight.data = torch.linspace(0.5, 2, K)
        projected = attention.value(x).unflatten(-1, (H, K)).transpose(1, 2)
        expected = nn.functional.layer_norm(projected, (K,), None, None, 1e-6) * attention.qk_norm.value.weight
        out = attention(x, carry := Carry())
        torch.testing.assert_close(carry.first_BHTK, expected)
        # The first token attends to itself alone.
        torch.testing.assert_close(out[:, 0], attention.out(expected[:, :, 0].flatten(1)))

    def test_queries_and_keys_are_those_of_layernorm(self) -> None:
        q, k = randn(B, H, T, K, seed=1), randn(B, H, T, K, seed=2)
        for found, expected in zip(norm("qkv")(q, k), norm("layernorm")(q, k), strict=True):
            assert torch.equal(found, expected)

    def test_values_keep_their_dtype(self) -> None:
        """It decides the one that attention runs in."""
        v = randn(B, H, T, K, dtype=torch.bfloat16)
        found, exact = norm("qkv").values(v), norm("qkv").values(v.float())
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, exact.bfloat16())

    @pytest.mark.parametrize("name", sorted(QK_NORM.choices.keys() - {"qkv"}))
    def test_all_others_leave_values_alone(self, name: str) -> None:
        v = randn(B, H, T, K)
        assert norm(name).values(v) is v


@pytest.mark.parametrize("kappa", [1e-2, 1.0, 1e4])
class TestFixed:
    """sqrt(kappa) z / sqrt(mean z^2): Wortsman et al. 2023, Fig. 10."""

    def test_mean_square_is_kappa(self, kappa: float) -> None:
        normalize, z = norm("fixed", kappa=kappa), randn(B, H, T, K, seed=1)
        for found in normalize(z, 7 * z):
            torch.testing.assert_close(found.square().mean(-1), torch.full((B, H, T), kappa))
            torch.testing.assert_close(found, math.sqrt(kappa) * z / z.square().mean(-1, keepdim=True).sqrt())

    @pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e15])
    def test_whatever_the_size(self, kappa: float, scale: float) -> None:
        """Of powers of ten far from one, where an eps or the range of fp32 would show."""
        normalize, z = norm("fixed", kappa=kappa), randn(B, H, T, K, seed=1)
        torch.testing.assert_close(normalize(scale * z, z)[0], normalize(z, z)[0], atol=0, rtol=1e-5)

    def test_size_of_logits(self, kappa: float) -> None:
        """With scale 1/sqrt(head_dim): of random directions std kappa, of equal ones kappa sqrt(head_dim)."""
        q, k = randn(64, H, T, K, seed=1), randn(64, H, T, K, seed=2)
        random = logits(norm("fixed", kappa=kappa), q, k)
        assert random.std().item() == pytest.approx(kappa, rel=0.03)
        equal = logits(norm("fixed", kappa=kappa), q, q).diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(equal, torch.full_like(equal, kappa * math.sqrt(K)))

    def test_no_gradient_along_the_input(self, kappa: float) -> None:
        z = randn(B, H, T, K, seed=1).requires_grad_()
        q, _ = norm("fixed", kappa=kappa)(z, z)
        (gradient,) = torch.autograd.grad((q * randn(B, H, T, K, seed=3)).sum(), z)
        along = (gradient * z).sum(-1) / (gradient.norm(dim=-1) * z.norm(dim=-1))
        torch.testing.assert_close(along, torch.zeros(B, H, T), atol=1e-5, rtol=0)
        assert gradient.abs().max() > 1e-3


def test_without_a_norm_logits_are_not_bounded() -> None:
    q, k = 100 * randn(B, H, T, K, seed=1), randn(B, H, T, K, seed=2)
    normalize = norm("none")
    assert normalize(q, k)[0] is q
    assert normalize(q, k)[1] is k
    assert logits(normalize, q, k).abs().max() > 10 * math.sqrt(K)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("which", ["query", "key"])
def test_outputs_do_not_depend_on_the_size_of_the_projections(name: str, which: str) -> None:
    attention, x = attention_layer(name), randn(B, T, H * K)
    before = attention(x, Carry())
    getattr(attention, which).weight.data *= 8
    torch.testing.assert_close(attention(x, Carry()), before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("which", ["query", "key"])
def test_without_a_norm_they_do(which: str) -> None:
    attention, x = attention_layer("none"), randn(B, T, H * K)
    before = attention(x, Carry())
    getattr(attention, which).weight.data *= 8
    assert (attention(x, Carry()) - before).abs().max() > 1e-2


def test_layernorm_removes_the_mean_and_rms_does_not() -> None:
    q, k = randn(B, H, T, K, seed=1) + 3, randn(B, H, T, K, seed=2) - 5
    for x in norm("layernorm")(q, k):
        torch.testing.assert_close(x.mean(-1), torch.zeros(B, H, T), atol=1e-6, rtol=0)
        torch.testing.assert_close(x.square().mean(-1), torch.ones(B, H, T), atol=1e-4, rtol=0)
    for x, sign in zip(norm("rmsnorm")(q, k), (1, -1), strict=True):
        assert (sign * x.mean(-1) > 0.5).all()
        torch.testing.assert_close(x.square().mean(-1), torch.ones(B, H, T), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("none", []),
        ("layernorm", [(K,), (K,)]),
        ("rmsnorm", [(K,), (K,)]),
        ("l2", [()]),
        ("fixed", []),
        ("qkv", [(K,)] * 3),
    ],
)
def test_parameters_are_shared_by_the_heads(name: str, shapes: list[tuple[int, ...]]) -> None:
    """Scales of the head dimension, no bias: Wortsman et al. 2023, Fig. E.8. l2: one g a layer."""
    assert [tuple(p.shape) for p in norm(name).parameters()] == shapes


@pytest.mark.parametrize("name", ["layernorm", "layernorm_model", "rmsnorm", "qkv"])
def test_query_and_key_have_weights_of_their_own(name: str) -> None:
    normalize, q, k = norm(name), randn(B, H, T, K, seed=1), randn(B, H, T, K, seed=2)
    q_before, k_before = normalize(q, k)
    normalize.query.weight.data *= 3
    q_after, k_after = normalize(q, k)
    torch.testing.assert_close(q_after, 3 * q_before)
    assert torch.equal(k_after, k_before)


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm"])
def test_norms_come_before_rope(name: str) -> None:
    """With unequal weights the two don't commute, so one order alone gives the layer's largest logit."""
    attention, x = attention_layer(name), randn(1, T, H * K)
    for one in (attention.qk_norm.query, attention.qk_norm.key):
        one.weight.data = torch.linspace(0.2, 2, K)
    q, k = (p(x).unflatten(-1, (H, K)).transpose(1, 2) for p in (attention.query, attention.key))
    rope, visible = choice(POSITION, "rope").build(H * K, H, T), torch.ones(T, T).tril().bool()

    def largest(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (q @ k.mT / math.sqrt(K))[:, :, visible].amax((0, 2))

    attention(x, carry := Carry(watch=True))
    found = carry.stats["attention/block0/logit_max"]
    norm_first = largest(*rope.rotate(*attention.qk_norm(q, k)))
    rope_first = largest(*attention.qk_norm(*rope.rotate(q, k)))
    torch.testing.assert_close(found, norm_first, atol=1e-5, rtol=1e-5)
    assert (rope_first - norm_first).abs().min() > 1e-3


@pytest.mark.parametrize("name", NORMS)
def test_statistics_are_fp32_for_bf16_inputs(name: str) -> None:
    normalize = norm(name)
    q, k = (randn(B, H, T, K, seed=s, dtype=torch.bfloat16) for s in (1, 2))
    for found, expected in zip(normalize(q, k), normalize(q.float(), k.float()), strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", NORMS)
def test_zero_queries_and_keys_pass(name: str) -> None:
    zero = torch.zeros(B, H, T, K, requires_grad=True)
    q, k = norm(name)(zero, zero)
    (q.sum() + k.sum()).backward()
    assert (q == 0).all()
    assert zero.grad is not None
    assert zero.grad.isfinite().all()


@pytest.mark.parametrize("name", ["layernorm", "rmsnorm"])
def test_eps_is_added_to_the_mean_square(name: str) -> None:
    """For x = (1, -1, ...) mean square and variance are 1, so the norm is 1 / sqrt(1 + eps)."""
    x = torch.tensor([1.0, -1.0]).repeat(K // 2)
    q, _ = norm(name, eps=3.0)(x, x)
    torch.testing.assert_close(q, x / 2)
