"""Probes against float64 computations on whole T x T matrices.

Shape suffixes: B batch, H heads, T tokens (rows: queries i, columns: keys j), K head dimension.
"""

import math

import pytest
import torch

from models import probes
from models.positions import POSITION
from models.probes import (
    Stats,
    attention_scores,
    effective_dimension,
    eigenvalues,
    fused_attention,
    fused_entropy,
    merge,
    over_rows,
    spectral_norms,
    unit,
    weight_entropy,
    weight_stats,
)
from tests.conftest import choice, largest_difference, randn

B, H, T, K = 3, 2, 33, 8
SCALE = 1 / math.sqrt(K)


def queries_and_keys(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """With unequal norms over heads and tokens, so that no mean or maximum is right by symmetry."""
    size_BHT1 = randn(B, H, T, 1, seed=3).exp()
    return scale * size_BHT1 * randn(B, H, T, K, seed=1), randn(B, H, T, K, seed=2) + 0.3


def alibi(biased: bool, length: int = T) -> torch.Tensor | None:
    return choice(POSITION, "alibi").build(H * K, H, length).bias(length) if biased else None


def matrix(q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Scaled logits in float64, -inf above the diagonal."""
    z_BHTT = SCALE * q.double() @ k.double().mT + (0 if bias is None else bias.double())
    length = z_BHTT.shape[-1]
    return z_BHTT.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)


def entropies(z_BHTT: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(z_BHTT.softmax(-1)).sum(-1)


@pytest.mark.parametrize("biased", [False, True])
class TestAttentionScores:
    def test_against_the_matrix(self, biased: bool) -> None:
        (q, k), bias = queries_and_keys(), alibi(biased)
        found, z_BHTT = attention_scores(q, k, SCALE, bias), matrix(q, k, bias)
        assert found.keys() == {"logit_max", "q_norm", "k_norm", "cosine_mean", "cosine_of_max_pair"}
        q, k = q.double(), k.double()
        unit_q, unit_k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
        cosine_BHTT = unit_q @ unit_k.mT
        for h in range(H):
            flat = int(z_BHTT[:, h].argmax())
            expected = {
                "logit_max": float(z_BHTT[:, h].max()),
                "q_norm": float(q[:, h].square().sum(-1).sqrt().mean()),
                "k_norm": float(k[:, h].square().sum(-1).sqrt().mean()),
                "cosine_mean": float(cosine_BHTT[:, h][:, torch.ones(T, T).tril().bool()].mean()),
                "cosine_of_max_pair": float(cosine_BHTT[:, h].flatten()[flat]),
            }
            for name, value in expected.items():
                assert found[name][h].item() == pytest.approx(value, rel=2e-6, abs=1e-6), name

    def test_chunks_change_nothing(self, biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        (q, k), bias = queries_and_keys(), alibi(biased)
        whole = attention_scores(q, k, SCALE, bias)
        # One row at once, a number of rows that does not divide T, all but one row.
        for rows in (1, 7, T - 1):
            monkeypatch.setattr(probes, "SCORES_AT_ONCE", rows * B * H * T)
            assert largest_difference(attention_scores(q, k, SCALE, bias), whole) < 1e-5, rows
        monkeypatch.setattr(probes, "SCORES_AT_ONCE", 1)
        assert largest_difference(attention_scores(q, k, SCALE, bias), whole) < 1e-5

    def test_the_future_is_not_seen(self, biased: bool) -> None:
        """A huge logit above the diagonal must not count."""
        (q, k), bias = queries_and_keys(), alibi(biased)
        before = attention_scores(q, k, SCALE, bias)
        q[:, :, 0] = k[:, :, T - 1] = 1e3
        q[:, :, T - 1] = -1
        after = attention_scores(q, k, SCALE, bias)
        assert (after["logit_max"] < 1e4).all()
        torch.testing.assert_close(after["logit_max"], matrix(q, k, bias).amax((0, 2, 3)).float())
        assert before.keys() == after.keys()

    @pytest.mark.parametrize(("b", "i", "j"), [(0, 0, 0), (1, 20, 20), (2, T - 1, 0), (2, T - 1, T - 1), (1, 8, 3)])
    def test_the_pair_with_the_largest_logit_is_found(self, biased: bool, b: int, i: int, j: int) -> None:
        """In any batch row, logit = scale |q_i| |k_j| cosine + bias: the parts of Wortsman et al. 2023, Fig. E.1."""
        (q, k), bias = queries_and_keys(), alibi(biased)
        k[b, 1, j] *= 10
        q[b, 1, i] = 50 * k[b, 1, j] + 100 * randn(K, seed=11)
        found = attention_scores(q, k, SCALE, bias)
        assert int(matrix(q, k, bias)[:, 1].argmax()) == (b * T + i) * T + j
        offset = 0.0 if bias is None else float(bias[1, i, j])
        size = SCALE * float(q[b, 1, i].norm()) * float(k[b, 1, j].norm())
        assert found["cosine_of_max_pair"][1].item() * size + offset == pytest.approx(
            found["logit_max"][1].item(), rel=1e-5
        )

    def test_one_token(self, biased: bool) -> None:
        (q, k), bias = queries_and_keys(), alibi(biased, 1)
        q, k = q[:, :, :1], k[:, :, :1]
        found = attention_scores(q, k, SCALE, bias)
        torch.testing.assert_close(found["logit_max"], (SCALE * (q * k).sum(-1)).amax((0, 2)), atol=1e-5, rtol=1e-5)
        cosines = torch.nn.functional.cosine_similarity(q, k, dim=-1)
        torch.testing.assert_close(found["cosine_mean"], cosines.mean((0, 2)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-10])
def test_cosines_of_tiny_queries_and_keys(scale: float) -> None:
    q, k = queries_and_keys()
    found, expected = attention_scores(scale * q, scale * k, 1 / scale), attention_scores(q, k, 1.0)
    torch.testing.assert_close(found["cosine_mean"], expected["cosine_mean"], atol=1e-6, rtol=1e-5)
    one, other = unit(scale * q), unit(scale * k)
    torch.testing.assert_close((one * other).sum(-1), torch.nn.functional.cosine_similarity(q, k, dim=-1))


def test_zero_queries_and_keys_have_cosine_zero() -> None:
    zero = torch.zeros(B, H, T, K)
    for name, value in attention_scores(zero, zero, SCALE).items():
        assert torch.equal(value, torch.zeros(H)), name


class TestFusedAttention:
    def test_output_and_logsumexp(self) -> None:
        q, k = queries_and_keys()
        v, z_BHTT = randn(B, H, T, K, seed=4), matrix(q, k)
        out, lse = fused_attention(q, k, v, SCALE)
        torch.testing.assert_close(out, (z_BHTT.softmax(-1) @ v.double()).float(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lse, z_BHTT.logsumexp(-1).float(), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("size", [1e-2, 1.0, 10.0, 1e2, 1e3, 1e4])
    def test_entropy_error_is_that_of_rounding(self, size: float) -> None:
        """H = lse - scale <q, A>: both terms are as large as the logits, hence 1e-7 of their size, and fp32's 1e-5."""
        q, k = queries_and_keys()
        q *= size / float(matrix(q, k).amax())
        z_BHTT = matrix(q, k)
        assert float(z_BHTT.max()) == pytest.approx(size, rel=1e-5)
        error_BHT = (fused_entropy(q, k, SCALE).double() - entropies(z_BHTT)).abs()
        largest_BHT = z_BHTT.tril().abs().nan_to_num(0, posinf=0).amax(-1)
        # Two roundings of 2^-24 a term, and a dot product of K terms.
        assert (error_BHT <= 3e-7 * largest_BHT + 1e-5).all()

    @pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
    def test_uniform_rows_have_entropy_log_of_their_length(self, size: float) -> None:
        """Equal keys: row i (from 1) is uniform over i keys whatever the query; one ulp at 1e4 is 1e-3."""
        q, k = size * torch.ones(1, 1, T, K), torch.ones(1, 1, T, K)
        logs = torch.arange(1, T + 1).log()
        torch.testing.assert_close(fused_entropy(q, k, 1 / K)[0, 0], logs, atol=1e-5 + 2e-7 * size, rtol=0)

    def test_one_hot_rows_have_entropy_zero(self) -> None:
        """Orthogonal keys and a query along its own: entropies stay at or above zero."""
        k = torch.eye(K)[None, None]
        found = fused_entropy(1e3 * k, k, 1.0)
        assert (found >= 0).all()
        assert found.max() < 1e-3


class TestWeightEntropy:
    def test_softmax_rows(self) -> None:
        """Row entropies of a softmax in float64, by hand."""
        rows = torch.tensor([[1, 0, 0, 0], [0.817574, 0.182426, 0, 0], [0.136039, 0.822987, 0.040974, 0]])
        torch.testing.assert_close(weight_entropy(rows), torch.tensor([0, 0.475052, 0.562607]), atol=2e-6, rtol=0)

    def test_rows_that_do_not_sum_to_one_are_normalized(self) -> None:
        rows = torch.tensor([[0.5, 0.5, 0, 0], [3, -3, 3, 3], [0, 0, 0, 0], [1e-20, 1e-20, 0, 0]])
        expected = torch.tensor([math.log(2), math.log(4), 0, math.log(2)])
        torch.testing.assert_close(weight_entropy(rows), expected)

    @pytest.mark.parametrize("size", [1.0, 1e3, 1e4])
    def test_of_softmax_is_exact_whatever_the_logits(self, size: float) -> None:
        z_BHTT = size * matrix(*queries_and_keys())
        found = weight_entropy(z_BHTT.float().softmax(-1))
        # A logit in fp32 is off by 6e-8 of its size, and the entropy by as much times the spread of the logits.
        torch.testing.assert_close(found.double(), entropies(z_BHTT.float().double()), atol=1e-5, rtol=1e-5)


# Signed weights of one head: rows 2, 0, 0; -1, 3, 0; and one of zeros. |w| / sum |w|: 1, 0, 0 and 1/4, 3/4, 0.
SIGNED = [[2.0, 0, 0], [-1, 3, 0], [0, 0, 0]]
UNIFORM = [[1, 0, 0], [1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, 1 / 3]]


def in_a_row(stats: Stats) -> dict[str, list[float]]:
    """As they come to the host, over the rows that have weight."""
    return over_rows({f"attention/block0/{name}": value.tolist() for name, value in stats.items()})


def of_heads(*heads: list[list[float]]) -> dict[str, float | list[float]]:
    found = in_a_row(weight_stats(torch.tensor([heads])))
    return {name.removeprefix("attention/block0/"): value for name, value in found.items()}


class TestWeightStats:
    def test_weights_stay(self) -> None:
        rows = torch.tensor(SIGNED)
        weight_stats(rows[None, None])
        assert torch.equal(rows, torch.tensor(SIGNED))

    def test_signed_weights_and_a_row_of_zeros(self) -> None:
        found = of_heads(SIGNED)
        expected = {
            "entropy": (0 - 0.25 * math.log(0.25) - 0.75 * math.log(0.75)) / 2,
            "top_weight": (1 + 3 / 4) / 2,
            "support": (1 + 1 / (1 / 16 + 9 / 16)) / 2,
            "sink_rate": 1,
            "sink_mass": (1 + 1 / 4) / 2,
            "row_sum": (2 + 2 + 0) / 3,
            "zero_rows": 1 / 3,
            "zero_weights": 3 / 6,
            "local_focus_0": (1 + 3 / 4) / 2,
            "local_focus_1": 1 / 4,  # of the rows 2 and 3, the second has no weight
            "local_focus_2": 0,
            "local_focus_3": 0,
        }
        assert found.pop("diversity") == 0
        assert found == {name: [pytest.approx(value, abs=1e-6)] for name, value in expected.items()}

    def test_heads_are_apart_but_in_their_diversity(self) -> None:
        """Standard deviations over the two: 0; 1/8, 1/8; 1/6 three times, as the row of zeros counts as zeros."""
        found, alone = of_heads(SIGNED, UNIFORM), of_heads(UNIFORM)
        assert found["diversity"] == pytest.approx((2 / 8 + 3 / 6) / 6)
        assert alone["support"] == [pytest.approx((1 + 2 + 3) / 3)]
        assert alone["local_focus_1"] == [pytest.approx((1 / 2 + 1 / 3) / 2)]
        assert alone["local_focus_2"] == [pytest.approx(1 / 3)]
        for name in found.keys() - {"diversity"}:
            assert found[name] == [pytest.approx(of_heads(SIGNED)[name][0]), pytest.approx(alone[name][0])], name

    def test_the_first_row_alone(self) -> None:
        found = of_heads([[0.3]], [[0.0]])
        assert found["top_weight"] == found["support"] == found["sink_mass"] == found["local_focus_0"] == [1, 0]
        assert found["sink_rate"] == [1, 0]
        assert found["row_sum"] == [pytest.approx(0.3), 0]
        assert found["zero_rows"] == found["zero_weights"] == [0, 1]
        assert found["entropy"] == found["local_focus_1"] == [0, 0]

    @pytest.mark.parametrize(("early", "late", "rate"), [(0.2, 0.9, 0.0), (0.4, 0.0, 1.0), (0.0, 0.9, 0.0)])
    def test_the_sink_rate_is_over_the_first_64_rows(self, early: float, late: float, rate: float) -> None:
        first_T = torch.tensor([early] * 64 + [late] * 36)
        weights = torch.diag(1 - first_T) + torch.nn.functional.pad(first_T[:, None], (0, 99))
        found = weight_stats(torch.stack([weights, torch.eye(100)])[:, None])
        # Of two sequences; the first key has 1/64 of the weight of the second.
        assert found["sink_rate"].item() == rate / 2

    def test_the_sink_rate_leaves_rows_of_zeros_out(self) -> None:
        """One row of five has weight, 0.31 of it on the first key: above 0.3, though not over all rows."""
        for first, rate in ((0.31, 1.0), (0.29, 0.0)):
            weights = torch.zeros(5, 5)
            weights[4] = torch.tensor([first, 0, 0, 0, 1 - first])
            assert weight_stats(weights[None, None])["sink_rate"].item() == rate

    def test_micro_batches_with_different_numbers_of_zero_rows(self) -> None:
        weights = randn(4, H, 12, 12, seed=5).tril()
        kept_B111 = torch.tensor([1, 0.8, 0.5, 0])[:, None, None, None]
        weights *= torch.rand(4, H, 12, 1, generator=torch.Generator().manual_seed(0)) < kept_B111
        parts = Stats()
        for part in weights:
            merge(parts, weight_stats(part[None]), 1 / 4)
        whole = weight_stats(weights)
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
        used = weights.abs().sum(-1) > 0
        largest = (weights.abs() / weights.abs().sum(-1, keepdim=True)).amax(-1)
        expected = [float(largest[:, h][used[:, h]].mean()) for h in range(H)]
        assert in_a_row(parts)["attention/block0/top_weight"] == pytest.approx(expected)
        assert in_a_row(whole)["attention/block0/top_weight"] == pytest.approx(expected)

    @pytest.mark.parametrize("exponent", [-100.0, -90.0, -50.0, 0.0, 80.0])
    def test_of_any_scale(self, exponent: float) -> None:
        """Equal weights e^x: rows of one and of two keys. e^-100 is a denormal, of which sums must not be floored."""
        w = math.exp(exponent)
        found = of_heads([[w, 0], [w, w]])
        expected = {"entropy": math.log(2) / 2, "support": 1.5, "top_weight": 0.75, "zero_rows": 0, "sink_rate": 1}
        assert {name: found[name] for name in expected} == {n: [pytest.approx(v)] for n, v in expected.items()}
        assert weight_entropy(torch.tensor([[w, w]])).item() == pytest.approx(math.log(2))

    def test_tiny_rows_against_float64(self) -> None:
        """Two weights, e^-60 and e^-61, beside a row of ordinary size."""
        z = torch.tensor([[0.0, -math.inf, -math.inf], [-60, -61, -math.inf], [-88, -87, -86.5]], dtype=torch.float64)
        p = z.softmax(-1)
        found = of_heads(z.exp().float().tolist())
        assert found["entropy"] == [pytest.approx(float(torch.special.entr(p).sum(-1).mean()), rel=1e-5)]
        assert found["support"] == [pytest.approx(float((1 / p.square().sum(-1)).mean()), rel=1e-5)]

    def test_nan_is_not_lost(self) -> None:
        found = of_heads([[1.0, 0], [math.nan, 1]])
        assert all(math.isnan(found[name][0]) for name in ("entropy", "top_weight", "support", "row_sum"))


class TestStreamStats:
    def test_of_two_tokens(self) -> None:
        """Kurtosis 1 and, of -1, -1, -1, 3 around the mean, (3 + 81) / 4 / 3^2; |x| 0, 0, 0, 1, 1, 1, 1, 4."""
        found = probes.stream_stats(torch.tensor([[[1.0, -1, 1, -1], [0, 0, 0, -4]]]))
        assert found["kurtosis"].item() == pytest.approx((1 + 7 / 3) / 2)
        assert found["massive_max"].item() == 4
        assert found["rms"].item() == pytest.approx(math.sqrt(20 / 8))

    def test_a_gaussian_has_a_kurtosis_of_three(self) -> None:
        found = probes.stream_stats(7 + 1e4 * randn(2, 500, 256, seed=1))["kurtosis"].item()
        # The estimate over 256 features is low by 6 / 257.
        assert found == pytest.approx(3 * 255 / 257, abs=0.02)

    def test_the_sequence_with_the_largest_ratio_counts(self) -> None:
        x = torch.ones(3, 5, 4)
        x[0, 0, 0], x[1] = -2000, 100
        parts, whole = Stats(), probes.stream_stats(x)
        for part in x:
            merge(parts, probes.stream_stats(part[None]), 1 / 3)
        assert parts["massive_max"].item() == whole["massive_max"].item() == 2000

    @pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-10, 1.0, 1e10])
    def test_kurtosis_and_ratio_have_no_scale(self, scale: float) -> None:
        x = randn(2, 5, 16, seed=3)
        found, expected = probes.stream_stats(scale * x), probes.stream_stats(x)
        assert found["kurtosis"].item() == pytest.approx(expected["kurtosis"].item(), rel=1e-5)
        assert found["massive_max"].item() == pytest.approx(expected["massive_max"].item(), rel=1e-5)
        assert found["mean_share"].item() == pytest.approx(expected["mean_share"].item(), rel=1e-5)
        assert found["diversity"].item() == pytest.approx(scale * expected["diversity"].item(), rel=1e-5)

    def test_a_stream_of_zeros_is_finite(self) -> None:
        found = probes.stream_stats(torch.zeros(1, 2, 4))
        assert {name: value.item() for name, value in found.items()} == {
            "rms": 0, "kurtosis": 0, "massive_max": 0, "mean_share": 0, "dimension": 0, "diversity": 0,
        }  # fmt: skip

    def test_the_share_of_the_mean(self) -> None:
        """T |mean|^2 / sum |x|^2: 6.666667 / 16, and 1 for equal tokens."""
        z = torch.tensor([[1.0, 2], [3, -1], [0, 1]])
        assert probes.stream_stats(z[None])["mean_share"].item() == pytest.approx(0.416667, abs=1e-6)
        both = torch.stack([z, torch.ones(3, 2)])
        assert probes.stream_stats(both)["mean_share"].item() == pytest.approx(1.416667 / 2, abs=1e-6)
        assert probes.stream_stats(z[None, :1])["mean_share"].item() == pytest.approx(1)

    def test_diversity(self) -> None:
        """|Z - mean| of three tokens, and the mean over sequences: the second has equal tokens."""
        z = torch.tensor([[1.0, 2], [0, -1], [3, 1]])
        assert probes.stream_stats(z[None])["diversity"].item() == pytest.approx(3.055050, abs=1e-6)
        both = torch.stack([z, torch.ones(3, 2)])
        assert probes.stream_stats(both)["diversity"].item() == pytest.approx(3.055050 / 2, abs=1e-6)


class TestEffectiveDimension:
    def test_of_three_axes(self) -> None:
        """Variances 4, 1 and 0.25: shares 0.761905, 0.952381 and 1 of the largest one, two and three."""
        rows = torch.diag(torch.tensor([2.0, 1, 0.5]))
        assert probes.effective_dimension(torch.cat([rows, -rows])[None]).tolist() == [2]
        assert probes.effective_dimension(7 + torch.cat([rows, -rows])[None]).tolist() == [2]

    @pytest.mark.parametrize(("length", "width"), [(5, 40), (40, 5), (64, 64), (17, 1), (1, 8)])
    def test_it_is_that_of_singular_values(self, length: int, width: int) -> None:
        """With more features than tokens and fewer, and unequal variances."""
        x = randn(4, length, width, seed=2) * torch.linspace(0.1, 3, width)
        square = torch.linalg.svdvals((x - x.mean(1, keepdim=True)).double()).square()
        shares = square.cumsum(-1) / square.sum(-1, keepdim=True)
        expected = [0] * 4 if length == 1 else [int((row < 0.8).sum()) + 1 for row in shares]
        assert probes.effective_dimension(x).tolist() == expected

    def test_of_a_long_sequence_it_takes_64_tokens(self) -> None:
        x = randn(2, 150, 100)
        apart = x[:, [i * 150 // 64 for i in range(64)]]
        assert torch.equal(probes.effective_dimension(x), probes.effective_dimension(apart))
        assert probes.effective_dimension(x).max() < 63

    @pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
    def test_it_has_no_scale(self, scale: float) -> None:
        x = randn(2, 9, 16, seed=3)
        assert torch.equal(probes.effective_dimension(scale * x), probes.effective_dimension(x))

    def test_equal_tokens_have_none_and_nan_stays(self) -> None:
        x = torch.ones(3, 4, 5)
        x[1, 2, 3], x[2] = math.nan, randn(4, 5)
        found = probes.effective_dimension(x)
        assert found[0] == 0
        assert found[1].isnan()
        assert found[2] >= 1

    def test_sequences_are_taken_by_themselves(self) -> None:
        """Micro-batches give the mean of the whole batch."""
        x, parts = randn(6, 12, 8, seed=4), Stats()
        whole = probes.stream_stats(x)
        for part in x.split(2):
            merge(parts, probes.stream_stats(part), 1 / 3)
        for name in ("mean_share", "dimension", "diversity"):
            assert parts[name].item() == pytest.approx(whole[name].item(), rel=1e-6)


class TestMerge:
    def test_means_are_summed_with_the_weight_and_maxima_kept(self) -> None:
        micro_batches = [
            {"loss": torch.tensor(1.0), "attention/block0/logit_max": torch.tensor([5.0, 1.0])},
            {"loss": torch.tensor(4.0), "attention/block0/logit_max": torch.tensor([2.0, 7.0])},
        ]
        into: Stats = {}
        for stats in micro_batches:
            merge(into, stats, 1 / 2)
        assert into["loss"].item() == 2.5
        assert into["attention/block0/logit_max"].tolist() == [5.0, 7.0]

    def test_minima_are_kept(self) -> None:
        into: Stats = {}
        for value in (0.5, 0.2, 0.3):
            merge(into, {"state/block0/decay_min": torch.tensor(value)}, 1 / 3)
        assert into["state/block0/decay_min"].item() == pytest.approx(0.2)

    def test_the_rms_of_parts_is_that_of_the_whole(self) -> None:
        parts, into = randn(4, 5, 3).chunk(4), Stats()
        for part in parts:
            merge(into, {"residual/block0/rms": probes.rms(part)}, 1 / 4)
        torch.testing.assert_close(into["residual/block0/rms"], probes.rms(torch.cat(parts)))

    def test_negative_maxima(self) -> None:
        into: Stats = {}
        for value in (-3.0, -2.0):
            merge(into, {"logit_max": torch.tensor(value)}, 0.5)
        assert into["logit_max"].item() == -2.0

    def test_a_cosine_at_the_maximum_is_that_of_the_larger_maximum(self) -> None:
        into: Stats = {}
        for top, cosine in (([1.0, 5.0], [0.1, 0.2]), ([2.0, 4.0], [0.3, 0.4])):
            merge(into, {"a/logit_max": torch.tensor(top), "a/cosine_of_max_pair": torch.tensor(cosine)}, 0.5)
        assert torch.equal(into["a/cosine_of_max_pair"], torch.tensor([0.3, 0.2]))

    def test_nan_is_not_lost(self) -> None:
        for order in ((math.nan, 1.0), (1.0, math.nan)):
            into: Stats = {}
            for value in order:
                merge(into, {name: torch.tensor(value) for name in ("logit_max", "rms", "loss")}, 0.5)
            assert all(value.isnan() for value in into.values())

    def test_inputs_stay(self) -> None:
        new = {"loss": torch.tensor(2.0), "logit_max": torch.tensor(2.0)}
        into: Stats = {}
        merge(into, new, 0.5)
        merge(into, new, 0.5)
        assert {name: value.item() for name, value in new.items()} == {"loss": 2.0, "logit_max": 2.0}

    def test_two_halves_have_the_statistics_of_the_whole(self) -> None:
        q, k = queries_and_keys()
        q, k = q.repeat(2, 1, 1, 1)[:4], k.repeat(2, 1, 1, 1)[:4]
        whole, halves = attention_scores(q, k, SCALE), Stats()
        for part in (slice(0, 2), slice(2, 4)):
            merge(halves, attention_scores(q[part], k[part], SCALE), 0.5)
        for name in ("logit_max", "q_norm", "k_norm", "cosine_mean"):
            torch.testing.assert_close(halves[name], whole[name], atol=1e-6, rtol=1e-5)


class TestRMS:
    def test_rms(self) -> None:
        assert probes.rms(torch.tensor([[3.0, -4.0]])).item() == pytest.approx(math.sqrt(12.5))
        assert probes.rms(torch.full((3,), 300.0, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_cosine_of_the_largest_pair_comes_from_the_micro_batch_that_has_it() -> None:
    q, k = randn(4, 2, 6, 8, seed=1), randn(4, 2, 6, 8, seed=2)
    whole, parts = attention_scores(q, k, 0.5), {}
    for i in range(4):
        merge(parts, attention_scores(q[i : i + 1], k[i : i + 1], 0.5), 1 / 4)
    assert torch.equal(parts["cosine_of_max_pair"], whole["cosine_of_max_pair"])
    assert torch.equal(parts["logit_max"], whole["logit_max"])


def test_spectral_norms_of_two_by_two_matrices() -> None:
    """[[3, 0], [4, 5]] has the singular values sqrt(45) and sqrt(5)."""
    matrices = torch.tensor([[[3.0, 0.0], [4.0, 5.0]], [[0.0, -2.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(spectral_norms(matrices), torch.tensor([math.sqrt(45), 2.0, 0.0]))
    matrices[1, 0, 0] = math.nan
    assert spectral_norms(matrices).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(("large", "small", "seed"), [(1.0, 1e-8, 11), (1e-7, 1e-20, 6), (1e-30, 1e-43, 0)])
def test_spectral_norms_of_weights_that_decay_has_nearly_zeroed(large: float, small: float, seed: int) -> None:
    """One row among rows near `small`: LAPACK's ssyevd alone doesn't converge for some of these."""
    w_HKD = small * randn(1, 8, 1, seed=seed)
    w_HKD[0, 6] = large
    torch.testing.assert_close(spectral_norms(w_HKD), torch.tensor([large]), rtol=1e-6, atol=0)


def test_eigenvalues_converge_beside_entries_far_below_the_largest() -> None:
    for exponent in range(8, 45):
        for seed in range(10):
            u_N = randn(8, seed=seed) * 10.0**-exponent
            u_N[6] = 1
            found_N = eigenvalues(u_N[:, None] * u_N)
            torch.testing.assert_close(found_N[-1], torch.tensor(1.0), rtol=1e-6, atol=0)
            assert found_N[:-1].max() <= 1e-6


def test_the_sink_rate_is_of_the_first_64_rows() -> None:
    """Half of the weight is on the first key in rows 1 to 32, none up to row 64, all of it after: 0.26 of 0.3."""
    weights_TT = torch.zeros(96, 96)
    weights_TT[1:, 1] = 1.0
    weights_TT[1:32, 0] = weights_TT[1:32, 1] = 0.5
    weights_TT[0, 0] = 1.0
    weights_TT[64:, :2] = torch.tensor([1.0, 0.0])
    assert weight_stats(weights_TT[None, None])["sink_rate"].tolist() == [0]
    weights_TT[32:40, :2] = 0.5
    assert weight_stats(weights_TT[None, None])["sink_rate"].tolist() == [1], "20.5 of 64"


def test_the_dimension_of_a_long_sequence_is_of_tokens_at_equal_distances() -> None:
    """The first half of 192 tokens lies on a line, the second in all of 8 directions."""
    x_BTD = randn(2, 192, 8)
    x_BTD[:, :96, 1:] = 0
    found_B = effective_dimension(x_BTD)
    assert torch.equal(found_B, effective_dimension(x_BTD[:, ::3]))
    assert (found_B > 3).all()
