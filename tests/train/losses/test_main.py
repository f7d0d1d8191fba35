"""Each main loss against its paper's equation. Shape suffixes: N tokens, V vocabulary, D model width."""

import dataclasses
import math
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from entmax import entmax15, entmax15_loss, entmax_bisect, sparsemax, sparsemax_loss

from tests.conftest import randn
from tests.train.losses.batch import N, V, gradient, objective, of_logits, output, targets, value
from train.losses import cross_entropy_z
from train.losses.eslm import risky
from train.losses.noisy_softmax import margin
from train.losses.sparse import entmax_loss, fixed, shrinking
from train.losses.spherical import zeta
from train.losses.stablemax import s, stablemax
from train.losses.tempnet import tempered

Z = [2.0, 1.0, -1.0]


def logits(scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return scale * randn(N, V, dtype=torch.float64, seed=seed)


class TestArithmetic:
    """Softmax collapse: where cross-entropy, and its gradient at the target, round to exactly 0."""

    ROWS = ((12.0, 0.0, 0.0), (20.0, 0.0, 0.0), (40.0, 0.0, 0.0), (2.0, 1.0, -1.0))
    FOUND: ClassVar[dict[str, tuple[list[float], list[float], list[float]]]] = {
        "fp32": ([1.2398e-5, 0, 0, 0.349012], [1.2398e-5, 0, 0, 0.294615], [0, 1, 1, 0]),
        "fp64": ([1.228835e-5, 4.122307e-9, 0, 0.349012], [1.228835e-5, 4.122307e-9, 0, 0.294615], [0, 0, 1, 0]),
        "exact": ([1.228835e-5, 4.122307e-9, 8.4967e-18, 0.349012],
                  [1.228827e-5, 4.122307e-9, 8.4967e-18, 0.294615], [0, 0, 0, 0]),
    }  # fmt: skip

    @pytest.mark.parametrize("arithmetic", FOUND)
    def test_vectors(self, arithmetic: str) -> None:
        losses, gradients, zeros = self.FOUND[arithmetic]
        made, y = objective("cross_entropy", 3, arithmetic=arithmetic), torch.tensor([0])
        for row, loss, slope, zero in zip(self.ROWS, losses, gradients, zeros, strict=True):
            out = of_logits(torch.tensor([row]))
            found, stats = made(out, y, True)
            assert found.item() == pytest.approx(loss, rel=1e-3, abs=0)
            assert torch.equal(stats["train/loss"], found.detach())
            assert -torch.autograd.grad(found, out.logits_NV)[0][0, 0].item() == pytest.approx(slope, rel=1e-2, abs=0)
            assert (stats["output/zero_loss"].item(), stats["output/collapse"].item()) == (zero, row[0] >= 20)

    def test_with_two_classes_fp32_collapses_from_a_margin_of_16_64(self) -> None:
        made, y = objective("cross_entropy", 2), torch.tensor([0])
        found = [made(of_logits(torch.tensor([[m, 0.0]])), y, False)[0].item() for m in (16.63, 16.64)]
        assert found == [pytest.approx(1.19e-7, rel=1e-2), 0]

    @pytest.mark.parametrize("arithmetic", ["fp64", "exact"])
    def test_is_the_same_function(self, arithmetic: str) -> None:
        """Far from collapse, values, gradients and statistics are those of fp32, with z-loss too."""
        out, y = of_logits(logits().float()), targets()
        found, plain = (
            objective("cross_entropy", z_loss=0.1, arithmetic=a)(out, y, True) for a in (arithmetic, "fp32")
        )
        torch.testing.assert_close(found, plain)
        gradients = [torch.autograd.grad(loss, out.logits_NV)[0] for loss, _ in (found, plain)]
        torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-5)


class TestLabelSmoothing:
    def test_vector(self) -> None:
        assert value("label_smoothing", Z, 0) == pytest.approx(0.482346, abs=1e-6)

    @pytest.mark.parametrize("eps", [0.0, 0.1, 0.7])
    def test_is_torch_s(self, eps: float) -> None:
        out, y = of_logits(logits()), targets()
        found, _ = objective("label_smoothing", eps=eps)(out, y, False)
        torch.testing.assert_close(found, F.cross_entropy(out.logits_NV, y, label_smoothing=eps))


class TestMaxSup:
    @pytest.mark.parametrize(("z", "cross_entropy"), [(Z, 0.349012), ([1.0, 2.0, -1.0], 1.349012)])
    def test_vectors(self, z: list[float], cross_entropy: float) -> None:
        term = value("maxsup", z, 0, lambda_start=1.0) - value("maxsup", z, 0, lambda_start=0.0)
        assert value("maxsup", z, 0, lambda_start=0.0) == pytest.approx(cross_entropy, abs=1e-6)
        assert term == pytest.approx(1.333333, abs=1e-6)

    def test_is_label_smoothing_where_the_largest_logit_is_the_true_one(self) -> None:
        assert value("maxsup", Z, 0) == pytest.approx(value("label_smoothing", Z, 0), abs=1e-12)

    def test_lambda_rises_linearly(self) -> None:
        values = [value("maxsup", Z, 0, progress=p) for p in (0.0, 0.5, 1.0)]
        assert [v - 0.349012 for v in values] == pytest.approx([x * 4 / 3 for x in (0.1, 0.15, 0.2)], abs=1e-6)

    def test_where_the_largest_logit_is_wrong_descent_raises_the_true_one(self) -> None:
        """d term / d z_y is -1/V, while that of label smoothing is 1 - 1/V."""
        out, y = of_logits([[1.0, 2.0, -1.0]]), torch.tensor([0])
        plain = gradient("cross_entropy", out, y)
        maxsup, smoothing = (gradient(n, out, y, **f) - plain for n, f in self.UNIT)
        assert maxsup[0].tolist() == pytest.approx([-1 / 3, 2 / 3, -1 / 3])
        assert smoothing[0].tolist() == pytest.approx([0.5 * 2 / 3, -0.5 / 3, -0.5 / 3])

    UNIT: tuple[tuple[str, dict[str, Any]], ...] = (
        ("maxsup", {"lambda_start": 1.0}),
        ("label_smoothing", {"eps": 0.5}),
    )


class TestSpherical:
    @pytest.mark.parametrize(("a", "b", "expected"), [(1.0, 0.0, 0.295156), (0.1, 10.0, 12.362500)])
    def test_vectors(self, a: float, b: float, expected: float) -> None:
        assert value("spherical", Z, 0, a=a, b=b) == pytest.approx(expected, abs=1e-6)
        found_N = zeta(torch.tensor([Z] * 3, dtype=torch.float64), torch.arange(3))
        assert found_N.tolist() == pytest.approx([1.069045, 0.267261, -1.336306], abs=1e-6)

    @pytest.mark.parametrize(("scale", "shift"), [(1.0, 50.0), (20.0, 0.0), (1e-3, -7.0)])
    def test_invariant_to_shift_and_scale(self, scale: float, shift: float) -> None:
        before, after = (
            objective("spherical")(of_logits(z), targets(), False)[0] for z in (logits(), scale * logits() + shift)
        )
        torch.testing.assert_close(after, before, rtol=1e-9, atol=0)

    def test_gradient_is_orthogonal_to_both(self) -> None:
        out = of_logits(logits())
        g_NV, z_NV = gradient("spherical", out, targets()), out.logits_NV.detach()
        assert g_NV.norm() > 0.01
        assert g_NV.sum(-1).abs().max() < 1e-12
        assert (g_NV * (z_NV - z_NV.mean(-1, keepdim=True))).sum(-1).abs().max() < 1e-12


class TestStableMax:
    def test_vector(self) -> None:
        assert value("stablemax", Z, 0) == pytest.approx(0.606136, abs=1e-6)
        s_V = s(torch.tensor(Z, dtype=torch.float64))
        assert (s_V / s_V.sum()).tolist() == pytest.approx([0.545455, 0.363636, 0.0909091], abs=1e-6)

    def test_s_is_monotone_and_smooth_at_zero(self) -> None:
        x = torch.linspace(-50, 50, 1001, dtype=torch.float64)
        assert all(a < b for a, b in pairwise(s(x).tolist()))
        at = torch.tensor([-1e-9, 0.0, 1e-9], dtype=torch.float64, requires_grad=True)
        assert s(at).tolist() == pytest.approx([1, 1, 1])
        assert torch.autograd.grad(s(at).sum(), at)[0].tolist() == pytest.approx([1, 1, 1])

    def test_z_loss_is_of_its_own_normalizer(self) -> None:
        """s of (2, 1, -1) is (3, 2, 0.5)."""
        added = value("stablemax", [2, 1, -1], 0, z_loss=0.1) - value("stablemax", [2, 1, -1], 0, z_loss=0.0)
        assert added == pytest.approx(0.1 * math.log(5.5) ** 2, abs=1e-6)
        # One confident row: the default doesn't outweigh the main loss, as it would with exp's.
        z = torch.full((1, 32), -50.0, dtype=torch.float64)
        z[0, 3] = 300.0
        slopes = [gradient("stablemax", of_logits(z.clone()), torch.tensor([3]), z_loss=c)[0, 3] for c in (0.0, 1e-4)]
        assert slopes[0] < slopes[1] < 0.01 * slopes[0] < 0

    def test_fp32_suffices(self) -> None:
        """The authors' code needs fp64."""
        z, y = 1e4 * randn(N, V), targets()
        p_NV = s(z.double()) / s(z.double()).sum(-1, keepdim=True)
        expected = -p_NV[range(N), y].log().mean()
        assert objective("stablemax")(of_logits(z), y, False)[0].item() == pytest.approx(expected.item(), rel=1e-6)


class TestSparse:
    @pytest.mark.parametrize(("name", "expected"), [("sparsemax", 0.36), ("entmax", 0.513990)])
    def test_vectors(self, name: str, expected: float) -> None:
        assert value(name, [1, 0.8, 0.1], 1) == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize(
        ("name", "fields", "transform"),
        [
            ("sparsemax", {}, lambda z: sparsemax(z, -1)),
            ("entmax", {}, lambda z: entmax15(z, -1)),
            ("entmax", {"alpha": 2.0}, lambda z: sparsemax(z, -1)),
            ("entmax", {"alpha": 1.2}, lambda z: entmax_bisect(z, 1.2, -1)),
        ],
    )
    def test_value_and_gradient_by_the_equation(self, name: str, fields: dict[str, float], transform: Any) -> None:
        """The value is (p* - e_y).z + Omega(p*) with the library's p*; the gradient is p* - e_y."""
        out, y = of_logits(logits(1.0)), targets()
        z_NV, alpha = out.logits_NV.detach(), 2.0 if name == "sparsemax" else fields.get("alpha", 1.5)
        p_NV = transform(z_NV)
        residual_NV = p_NV - F.one_hot(y, V)
        expected_N = (residual_NV * z_NV).sum(-1) + (1 - (p_NV**alpha).sum(-1)) / (alpha * (alpha - 1))
        torch.testing.assert_close(objective(name, **fields)(out, y, False)[0], expected_N.mean())
        torch.testing.assert_close(gradient(name, out, y, **fields), residual_NV, atol=1e-9, rtol=1e-9)

    @pytest.mark.parametrize(("lead", "loss"), [(1.5, 0.0), (1.0, 0.0), (0.99, 2.5e-5)])
    def test_sparsemax_is_zero_from_a_margin_of_one(self, lead: float, loss: float) -> None:
        assert value("sparsemax", [lead, 0, -1], 0) == pytest.approx(loss, abs=1e-9)

    @pytest.mark.parametrize("alpha", [1.05, 1.5, 1.7, 2.0, 3.0])
    def test_never_negative_and_the_same_in_fp32(self, alpha: float) -> None:
        z_NV = 30 * logits(0.1)
        for z, y in zip(z_NV, z_NV.argmax(-1), strict=True):
            exact, found = (
                objective("entmax", alpha=alpha)(of_logits(x[None]), y[None], False)[0].item() for x in (z, z.float())
            )
            assert exact >= -1e-12
            assert found == pytest.approx(exact, rel=1e-4, abs=1e-5)

    def test_alpha_near_one_comes_near_cross_entropy(self) -> None:
        gaps = [value("cross_entropy", Z, 0) - value("entmax", Z, 0, alpha=a) for a in (2.0, 1.5, 1.2, 1.1, 1.05)]
        assert gaps == sorted(gaps, reverse=True)
        assert 0 < gaps[-1] < 0.06

    @pytest.mark.parametrize("q", [1, 2])
    @pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
    def test_a_fixed_number_of_steps_gives_the_same_thresholds(self, q: int, scale: float) -> None:
        """Of flat and peaked logits, of as many kinds as a large vocabulary has, and of ties."""
        x_NV = scale * randn(64, 8192, dtype=torch.float32)
        x_NV[0], x_NV[1, 100:] = 0, -60
        x_NV -= x_NV.amax(-1, keepdim=True)
        assert torch.equal(fixed(x_NV, q), shrinking(x_NV, q))

    @pytest.mark.parametrize(("alpha", "library"), [(2.0, sparsemax_loss), (1.5, entmax15_loss)])
    @pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 30.0])
    def test_agrees_with_the_library_for_any_support(self, scale: float, alpha: float, library: Any) -> None:
        """The scales give supports from all 2000 logits down to one."""
        y = targets(5, 2000)
        for dtype, error in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
            z_NV = (scale * randn(5, 2000, dtype=dtype)).requires_grad_()
            found_N, expected_N = entmax_loss(alpha)(z_NV, y), library(z_NV, y)
            torch.testing.assert_close(found_N, expected_N, rtol=error, atol=error)
            g_NV, expected_NV = (torch.autograd.grad(x.sum(), z_NV)[0] for x in (found_N, expected_N))
            torch.testing.assert_close(g_NV, expected_NV, rtol=0, atol=error)


def standardized_target(z_NV: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    mu_N, sigma_N = z_NV.mean(-1), z_NV.std(-1, correction=0)
    return (z_NV[range(N), y] - mu_N) / sigma_N


def tempered_by_torch(z_NV: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Uses a temperature that depends on the logits, so that their gradient includes the temperature's."""
    tau_N = z_NV.sigmoid().mean(-1)
    return tau_N * (F.cross_entropy(z_NV / tau_N[:, None], y, reduction="none") + 2 - math.log(V))


ANALYTIC = [
    (zeta, standardized_target),
    (lambda z, y: stablemax(z, y)[0], lambda z, y: s(z).sum(-1).log() - s(z)[range(N), y].log()),
    (lambda z, y: stablemax(z, y)[1], lambda z, y: s(z).sum(-1).log()),
    (entmax_loss(2.0), sparsemax_loss),
    (entmax_loss(1.5), entmax15_loss),
    (lambda z, y: tempered(z, y, z.sigmoid().mean(-1), 2.0), tempered_by_torch),
]


NAMED = ["spherical", "stablemax", "stablemax z", "sparsemax", "entmax", "tempnet"]


@pytest.mark.parametrize(("ours", "plain"), ANALYTIC, ids=NAMED)
class TestAnalyticGradient:
    def test_is_autograd_s_token_by_token(self, ours: Any, plain: Any) -> None:
        z_NV, y, weights_N = logits().requires_grad_(), targets(), randn(N, seed=5, dtype=torch.float64)
        torch.testing.assert_close(ours(z_NV, y), plain(z_NV, y))
        found, expected = (torch.autograd.grad((weights_N * f(z_NV, y)).sum(), z_NV)[0] for f in (ours, plain))
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)

    def test_a_second_backward_pass_is_an_error(self, ours: Any, plain: Any) -> None:
        """The first pass overwrites the saved tensors."""
        loss = ours(logits().requires_grad_(), targets()).sum()
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


class TestNoisySoftmax:
    def test_vector(self) -> None:
        """W_y = (3, 4) and x = (1, 0) give logit 3 and margin 2; alpha 0.1 and |xi| = 1 lower the logit to 2.8."""
        head_VD, x_ND = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
        out = dataclasses.replace(of_logits(x_ND @ head_VD.T), hidden_ND=x_ND, head_VD=head_VD)
        loss_N, lowered_N = objective("noisy_softmax").tokens(out, torch.tensor([0]), torch.tensor([-1.0]))
        assert lowered_N.item() == pytest.approx(0.2)
        assert loss_N.item() == pytest.approx(math.log1p(math.exp(-2.8)))

    def test_only_the_target_s_logit_is_lowered(self) -> None:
        out, y = output(dtype=torch.float64), targets()
        made, xi_N = objective("noisy_softmax"), randn(N, dtype=torch.float64)
        loss_N, lowered_N = made.tokens(out, y, xi_N)
        w_ND, x_ND = out.head_VD.detach()[y], out.hidden_ND
        angle_N = F.cosine_similarity(w_ND, x_ND)
        torch.testing.assert_close(lowered_N, 0.1 * w_ND.norm(dim=1) * x_ND.norm(dim=1) * (1 - angle_N) * xi_N.abs())
        assert (lowered_N > 0).all()
        z_NV = out.logits_NV - F.one_hot(y, V) * lowered_N[:, None]
        torch.testing.assert_close(loss_N, F.cross_entropy(z_NV, y, reduction="none"))

    def test_without_strength_it_is_cross_entropy(self) -> None:
        out, y = output(), targets()
        found, _ = objective("noisy_softmax", alpha=0.0)(out, y, False)
        assert torch.equal(found, objective("cross_entropy")(out, y, False)[0])

    def test_noise_fades_with_the_angle(self) -> None:
        rows_ND = randn(N, 5)
        assert margin(3 * rows_ND, rows_ND).max() < 1e-5
        assert margin(3 * rows_ND, rows_ND).min() >= 0

    def test_noise_is_standard_normal(self) -> None:
        """The mean of |xi| is sqrt(2 / pi)."""
        out, y = output(count=20000), targets(20000)
        stats = objective("noisy_softmax")(out, y, True)[1]
        per_unit = 0.1 * margin(out.hidden_ND, out.head_VD[y]).mean().item()
        assert stats["output/noise"].item() / per_unit == pytest.approx(math.sqrt(2 / math.pi), rel=0.03)


class TestESLM:
    LOSSES = torch.tensor([0.1, 2, 0.5, 3, 1], dtype=torch.float64)

    def of_losses(self) -> torch.Tensor:
        """Returns two logits per token. With target 0, the cross-entropies are LOSSES."""
        return torch.stack([torch.zeros(5, dtype=torch.float64), self.LOSSES.expm1().log()], 1)

    @pytest.mark.parametrize(("alpha", "count", "mean"), [(0.2, 4, 1.625), (0.6, 2, 2.5), (0.0, 5, 1.32)])
    def test_vectors(self, alpha: float, count: int, mean: float) -> None:
        assert risky(self.LOSSES, alpha).sum() == count
        found, stats = objective("eslm", alpha=alpha)(
            of_logits(self.of_losses()), torch.zeros(5, dtype=torch.int64), True
        )
        assert found.item() == pytest.approx(mean)
        assert stats["output/kept"].item() == pytest.approx(count / 5)
        assert stats["train/loss"].item() == pytest.approx(1.32)

    @pytest.mark.parametrize("score", ["loss", "entropy"])
    def test_dropped_tokens_have_no_gradient(self, score: str) -> None:
        out, y = of_logits(logits()), targets()
        plain = cross_entropy_z(out.logits_NV.detach(), y, 0.0)[1]
        p_NV = out.logits_NV.detach().softmax(-1)
        score_N = plain if score == "loss" else -(p_NV * p_NV.log()).sum(-1)
        chosen_N = risky(score_N, 0.4)
        g_NV = gradient("eslm", out, y, alpha=0.4, score=score) / N * chosen_N.sum()
        torch.testing.assert_close(g_NV, (p_NV - F.one_hot(y, V)) * chosen_N[:, None])

    def test_scores_choose_differently(self) -> None:
        found = [
            objective("eslm", alpha=0.4, score=s)(output(), targets(), False)[0].item() for s in ("loss", "entropy")
        ]
        assert found[0] > found[1]

    def test_rises_with_alpha_up_to_the_worst_token(self) -> None:
        losses = [value_of_alpha(a) for a in (0.0, 0.2, 0.4, 0.6, 0.8, 0.99)]
        assert losses == sorted(losses)
        assert losses[-1] == cross_entropy_z(logits(), targets(), 0.0)[1].max().item()

    def test_is_cvar(self) -> None:
        """CVaR is min_b b + mean (l - b)+ / (1 - alpha). Here the dropped share alpha is a whole number of tokens."""
        loss_N = cross_entropy_z(logits(), targets(), 0.0)[1]
        alpha = 3 / N
        cvar = min((b + (loss_N - b).clamp_min(0).mean() / (1 - alpha)).item() for b in loss_N)
        assert value_of_alpha(alpha) == pytest.approx(cvar)


def value_of_alpha(alpha: float) -> float:
    return objective("eslm", alpha=alpha)(of_logits(logits()), targets(), False)[0].item()


class TestTempNet:
    def test_vector(self) -> None:
        z, y = torch.tensor([Z], dtype=torch.float64), torch.tensor([0])
        assert tempered(z, y, torch.tensor([0.8]).double(), 5.0).item() == pytest.approx(3.337146, abs=1e-6)

    @pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
    def test_equation(self, tau: float) -> None:
        z, y = logits(), targets()
        expected = tau * F.cross_entropy(z / tau, y, reduction="none") + (2 - math.log(V)) * tau
        torch.testing.assert_close(tempered(z, y, torch.full((N,), tau).double(), 2.0), expected)

    @pytest.mark.parametrize(("rho", "interior"), [(0.5, True), (2.0, True), (2.5, False)])
    def test_the_best_temperature_is_interior_for_rho_below_log_v(self, rho: float, interior: bool) -> None:
        """log V = 2.398."""
        taus = torch.logspace(-4, 4, 801, dtype=torch.float64)
        loss = tempered(logits()[:1].expand(801, V), targets()[:1].expand(801), taus, rho)
        assert (0 < int(loss.argmin()) < 800) == interior

    @pytest.mark.parametrize(("sign", "bound"), [(-1, 0.7), (1, 1.3)])
    def test_temperatures_lie_between_the_bounds(self, sign: int, bound: float) -> None:
        made, out = objective("tempnet", tau_min=0.7, tau_max=1.3), output()
        assert 0.7 < made.temperature(out).min() < 1.3
        with torch.no_grad():
            made.temperature.last.bias.fill_(sign * 1e3)
        assert made.temperature(out).tolist() == pytest.approx([bound] * N)

    def test_network(self) -> None:
        """The network without dropout, against the formula of the authors' code."""
        made, out = objective("tempnet", dropout=0.0), output()
        net, z_NV = made.temperature, out.logits_NV.detach()
        x_NH = net.across(torch.sigmoid(net.up(z_NV / z_NV.norm(dim=1, keepdim=True))))
        pooled_N = ((x_NH.softmax(1) - 1 / 256) * x_NH).sum(1)
        torch.testing.assert_close(net(out), 0.5 + 4.5 * torch.sigmoid(pooled_N))
        assert sum(p.numel() for p in made.parameters()) == (V + 1) * 256 + 257 * 256 + 257 + 1

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_first_layer_agrees_through_width_and_vocabulary(self, dtype: torch.dtype) -> None:
        """Without a soft-cap the product goes through the model width, with one through the vocabulary."""
        out = output(dtype=dtype)
        direct, short = (objective("tempnet", soft_cap=c).to(dtype).temperature for c in (30.0, None))
        expected_NH = F.linear(out.logits_NV.detach(), direct.up.weight)
        torch.testing.assert_close(short.project(out), expected_NH)
        assert torch.equal(direct.project(out), expected_NH)
        slopes = [torch.autograd.grad(net.project(out).square().sum(), net.up.weight)[0] for net in (direct, short)]
        torch.testing.assert_close(slopes[1], slopes[0])

    def test_dropout_is_unbiased_and_of_half_the_units(self) -> None:
        made, out = objective("tempnet"), output()
        seen: list[torch.Tensor] = []
        made.temperature.across.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
        made.temperature(out)
        assert (seen[0] == 0).double().mean().item() == pytest.approx(0.5, abs=0.05)
        whole = torch.sigmoid(made.temperature.up(F.normalize(out.logits_NV.detach(), dim=-1)))
        torch.testing.assert_close(seen[0][seen[0] > 0], (2 * whole)[seen[0] > 0])

    def test_the_network_gets_a_gradient_and_gives_the_logits_none(self) -> None:
        """dL/dz is softmax(z / tau) - e_y, as for a constant temperature."""
        out, y, made = of_logits(logits().float()), targets(), objective("tempnet")
        tau_N = made.temperature(out).detach()
        made(out, y, False)[0].backward()
        assert all(p.grad is not None and p.grad.norm() > 0 for p in made.parameters())
        expected = (out.logits_NV.detach() / tau_N[:, None]).softmax(-1) - F.one_hot(y, V)
        torch.testing.assert_close(out.logits_NV.grad * N, expected)

    def test_the_seed_decides_its_start(self) -> None:
        from tests.conftest import choice
        from train.losses import LOSS

        starts = [choice(LOSS, "tempnet").build(vocab_size=V, seed=s).temperature.up.weight for s in (0, 0, 1)]
        assert torch.equal(starts[0], starts[1])
        assert not torch.equal(starts[0], starts[2])


def test_the_network_gives_hidden_states_and_head_no_gradient() -> None:
    """It reads their product, of which the first layer takes both factors."""
    out, made = output(), objective("tempnet", dropout=0.0)
    hidden_ND = out.hidden_ND.requires_grad_()
    logits_NV = (hidden_ND @ out.head_VD.T).detach().requires_grad_()
    loss, _ = made(dataclasses.replace(out, logits_NV=logits_NV, hidden_ND=hidden_ND), targets(), False)
    found = torch.autograd.grad(loss, [hidden_ND, out.head_VD], allow_unused=True)
    assert found == (None, None)
