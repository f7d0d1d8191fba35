"""DFT and losses over a part of the vocabulary."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.train.losses.batch import N, V, gradient, objective, of_logits, output, targets, value
from train.losses.restricted import of_sample

Z = [2.0, 1.0, -1.0, 0.5]


class TestDFT:
    @pytest.mark.parametrize(
        ("target", "expected", "slope"),
        [
            (0, 0.301794, [-0.238019, 0.136646, 0.018493, 0.082880]),
            (2, 0.106055, [0.018493, 0.006803, -0.029423, 0.004126]),
        ],
    )
    def test_vectors(self, target: int, expected: float, slope: list[float]) -> None:
        assert value("dft", Z, target) == pytest.approx(expected, abs=1e-6)
        assert gradient("dft", of_logits([Z]), torch.tensor([target]))[0].tolist() == pytest.approx(slope, abs=1e-6)

    def test_the_gradient_is_that_of_cross_entropy_times_the_probability(self) -> None:
        out, y = of_logits(3 * output(dtype=torch.float64).logits_NV), targets()
        p_N = out.logits_NV.softmax(-1)[torch.arange(N), y].detach()
        expected_NV = p_N[:, None] * gradient("cross_entropy", out, y)
        torch.testing.assert_close(gradient("dft", out, y), expected_NV, atol=1e-12, rtol=1e-9)
        stats = objective("dft")(out, y, True)[1]
        assert float(stats["output/target_probability"]) == pytest.approx(float(p_N.mean()))


class TestSparseSoftmax:
    @pytest.mark.parametrize(("target", "expected"), [(0, 0.313262), (1, 1.313262), (2, 3.349012)])
    def test_vectors(self, target: int, expected: float) -> None:
        assert value("sparse_softmax", Z, target, k=2) == pytest.approx(expected, abs=1e-6)

    def test_only_the_largest_and_the_target_get_a_gradient(self) -> None:
        out, y = of_logits(output(dtype=torch.float64).logits_NV), targets()
        g_NV = gradient("sparse_softmax", out, y, k=3)
        expected_NV = torch.zeros(N, V, dtype=torch.bool).scatter(1, out.logits_NV.topk(3).indices, True)
        assert torch.equal(g_NV != 0, expected_NV.scatter(1, y[:, None], True))
        torch.testing.assert_close(g_NV.sum(1), torch.zeros(N, dtype=torch.float64), atol=1e-12, rtol=0)

    @pytest.mark.parametrize("k", [V, 100])
    def test_with_all_logits_it_is_cross_entropy(self, k: int) -> None:
        out, y = of_logits(output(dtype=torch.float64).logits_NV), targets()
        found = objective("sparse_softmax", k=k)(out, y, False)[0]
        torch.testing.assert_close(found, F.cross_entropy(out.logits_NV, y), atol=1e-12, rtol=0)


class TestSampledSoftmax:
    @pytest.mark.parametrize(("correction", "expected"), [(math.log(3 / 2), 0.634731), (0.0, 0.464369)])
    def test_vectors(self, correction: float, expected: float) -> None:
        """Two of the three other tokens."""
        z_NV = torch.tensor([Z], dtype=torch.float64)
        found = of_sample(z_NV, torch.tensor([0]), F.one_hot(torch.tensor([1, 3]), 4).sum(0).bool(), correction)
        assert float(found) == pytest.approx(expected, abs=1e-6)

    def test_targets_and_a_share_of_the_rest_get_a_gradient(self) -> None:
        out, y = of_logits(output(dtype=torch.float64).logits_NV), targets()
        touched = (gradient("sampled_softmax", out, y, share=0.4) != 0).any(0)
        others = V - len(y.unique())
        assert touched[y].all()
        assert int(touched.sum()) == len(y.unique()) + math.ceil(0.4 * others)

    @pytest.mark.parametrize("corrected", [False, True])
    def test_with_all_tokens_it_is_cross_entropy(self, corrected: bool) -> None:
        out, y = of_logits(output(dtype=torch.float64).logits_NV), targets()
        found = objective("sampled_softmax", share=1.0, corrected=corrected)(out, y, False)[0]
        torch.testing.assert_close(found, F.cross_entropy(out.logits_NV, y), atol=1e-12, rtol=0)

    def test_the_sum_is_unbiased_with_the_correction(self) -> None:
        """The mean over all samples of two of three negatives equals the full sum."""
        z_NV = torch.tensor([Z], dtype=torch.float64)
        pairs = ([1, 2], [1, 3], [2, 3])
        drawn = [F.one_hot(torch.tensor(p), 4).sum(0).bool() for p in pairs]
        sums = [of_sample(z_NV, torch.tensor([0]), p_V, math.log(3 / 2)).add(2.0).exp() for p_V in drawn]
        assert float(torch.stack(sums).mean()) == pytest.approx(sum(map(math.exp, Z)), rel=1e-12)


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_with_the_correction_a_sample_stands_for_all(share: float) -> None:
    """Of equal logits the corrected loss is log V for any share; without it, log of the number of tokens that count."""
    out, y = of_logits(torch.zeros(N, V, dtype=torch.float64)), targets()
    unique = len(y.unique())
    drawn = math.ceil(share * (V - unique))
    found, plain = (
        objective("sampled_softmax", share=share, corrected=c)(out, y, False)[0].item() for c in (True, False)
    )
    assert found - plain == pytest.approx(math.log(V) - math.log(unique + drawn))
    assert plain == pytest.approx(math.log(unique + drawn))
