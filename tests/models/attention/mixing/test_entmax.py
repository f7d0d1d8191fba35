"""alpha-entmax attention, its solvers and the gradient of alpha."""

import pytest
import torch
from entmax import entmax_bisect

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs
from models.attention.mixing.entmax import halley
from tests.conftest import randn
from tests.models.attention.mixing.helpers import B, H, T, alibi, build, mixing, of_logits, one_dimensional, qkv

KNOBS: dict[str, str] = {"alpha": "1.2"}
ALIKE = {"solver"}
SOLVERS = [(1.5, None), (1.5, "sort"), (1.5, "bisection"), (1.5, "halley"), (2.0, "sort"), (2.0, "halley")]
ROW = [-0.3, 0.7, 1.5, 0.0]


def ready(z: torch.Tensor) -> torch.Tensor:
    return z - z.amax(-1, keepdim=True)


class TestEntmax:
    @pytest.mark.parametrize("solver", [None, "sort", "bisection", "halley"])
    def test_vectors(self, solver: str | None) -> None:
        """In float64."""
        weights = of_logits("entmax", solver=solver)
        torch.testing.assert_close(weights[1, :2], torch.tensor([0.949609, 0.050391]), atol=1e-6, rtol=0)
        torch.testing.assert_close(weights[2, :3], torch.tensor([0.009108, 0.990892, 0.0]), atol=1e-6, rtol=0)
        torch.testing.assert_close(weights[3], torch.tensor([0.0, 0.223411, 0.761542, 0.015046]), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("solver", [None, "bisection", "halley"])
    def test_vectors_of_other_alphas(self, solver: str | None) -> None:
        expected = torch.tensor([0.040091, 0.236645, 0.648749, 0.074514])
        torch.testing.assert_close(of_logits("entmax", alpha=1.25, solver=solver)[3], expected, atol=1e-6, rtol=0)
        found = of_logits("entmax", alpha=2.0, solver=solver)
        torch.testing.assert_close(found, of_logits("sparsemax"), atol=1e-6, rtol=0)

    def test_alpha_near_one_is_close_to_softmax(self) -> None:
        q, k, _ = qkv()
        found, softmax = build("entmax", alpha=1.01).weights(Inputs(q, k)), build("softmax").weights(Inputs(q, k))
        assert 1e-4 < (found - softmax).abs().max() < 2e-2

    @pytest.mark.parametrize(("alpha", "solver"), SOLVERS)
    def test_rows_sum_to_one_with_exact_zeros(self, alpha: float, solver: str | None) -> None:
        (q, k, _), bias = qkv(), alibi()
        weights = build("entmax", alpha=alpha, solver=solver).weights(Inputs(3 * q, k, bias))
        torch.testing.assert_close(weights.sum(-1), torch.ones(B, H, T))
        assert (weights[..., -1, :] == 0).any()
        assert (weights.triu(1) == 0).all()

    @pytest.mark.parametrize("solver", ["sort", "bisection", "halley"])
    def test_a_shift_changes_nothing(self, solver: str) -> None:
        shifted = one_dimensional("entmax", [k + 50 for k in ROW], solver=solver)  # type: ignore[arg-type]
        torch.testing.assert_close(shifted, one_dimensional("entmax", ROW), atol=1e-5, rtol=0)

    @pytest.mark.parametrize(("alpha", "solver"), [*SOLVERS, (1.25, "bisection"), (1.25, "halley")])
    @pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
    def test_finite(self, alpha: float, solver: str | None, scale: float) -> None:
        q, k, v = (x.requires_grad_() for x in qkv())
        outputs = build("entmax", alpha=alpha, solver=solver)(Inputs(scale * q, k), v)
        assert outputs.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(outputs.sum(), (q, k, v)))

    @pytest.mark.parametrize(("alpha", "solver"), SOLVERS)
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_divergence_is_nan(self, alpha: float, solver: str | None, value: float) -> None:
        """In the rows that see it, and no error."""
        (q, k, v), rule = qkv(), build("entmax", alpha=alpha, solver=solver)
        expected = rule(Inputs(q, k), v)
        bias = torch.zeros(H, T, T)
        bias[:, 5, 2] = value
        outputs = rule(Inputs(q.requires_grad_(), k, bias), v)
        outputs.sum().backward()
        assert outputs[:, :, 5].isnan().all()
        others = [i for i in range(T) if i != 5]
        torch.testing.assert_close(outputs[:, :, others], expected[:, :, others], atol=1e-6, rtol=0)

    @pytest.mark.parametrize("solver", ["sort", "bisection", "halley"])
    def test_gradient_of_the_logits(self, solver: str) -> None:
        k = torch.tensor(ROW)[None, None, :, None].requires_grad_()
        row = build("entmax", heads=1, head_dim=1, scale=1.0, solver=solver).weights(Inputs(torch.ones_like(k), k))[
            0, 0, -1
        ]
        (gradient,) = torch.autograd.grad(row @ torch.tensor([1.0, 2, 3, 4]), k)
        expected = torch.tensor([0, -0.359971, 0.208061, 0.151910])
        torch.testing.assert_close(gradient.flatten(), expected, atol=2e-6, rtol=0)


class TestSolvers:
    @pytest.mark.parametrize("alpha", [1.01, 1.1, 1.25, 1.5, 1.75, 1.99, 2.0])
    @pytest.mark.parametrize("spread", [0.3, 5.0, 100.0])
    def test_halley_is_bisection_in_float64(self, alpha: float, spread: float) -> None:
        z = ready(spread * randn(16, 200))
        alphas = torch.full((16, 1), alpha)
        expected = entmax_bisect(z.double(), alphas.double(), -1, 60)
        torch.testing.assert_close(halley(z, alphas).double(), expected, atol=2e-6, rtol=0)

    def test_halley_converges_cubically(self) -> None:
        """At alpha 1.5 in three steps, to what two are far from."""
        z, alpha = ready(randn(64, 64, dtype=torch.float64)), torch.full((64, 1), 1.5, dtype=torch.float64)
        exact = entmax_bisect(z, alpha, -1, 60)
        errors = [float((halley(z, alpha, steps) - exact).abs().max()) for steps in (2, 3, 4)]
        assert errors[0] > 1e-4
        assert errors[1] < 1e-6
        assert errors[2] < 1e-12

    def test_sort_is_of_two_alphas(self) -> None:
        with pytest.raises(ConfigError, match=r"solver=sort is for alpha=1.5 and alpha=2, not 1.25"):
            build("entmax", alpha=1.25, solver="sort")
        with pytest.raises(ConfigError, match=r"not null: use solver=halley or null"):
            build("entmax", alpha=None, solver="sort")


class TestLearnedAlpha:
    def test_one_parameter_a_head_within_its_bounds(self) -> None:
        rule = build("entmax", alpha=None, heads=4)
        (free,) = rule.parameters()
        assert free.shape == (4,)
        # 1 + sigmoid of -1.1503, -0.3186, 0.3186, 1.1503: the 1/8, 3/8, 5/8 and 7/8 quantiles of N(0, 1).
        expected = torch.tensor([1.24042, 1.42101, 1.57899, 1.75958])
        torch.testing.assert_close(rule.alpha(), expected, atol=1e-5, rtol=0)
        with torch.no_grad():
            free.copy_(torch.tensor([-20.0, -2, 2, 20]))
        torch.testing.assert_close(rule.alpha(), torch.tensor([1.01, 1.119203, 1.880797, 2.0]), atol=1e-6, rtol=0)

    @pytest.mark.parametrize("solver", [None, "bisection"])
    def test_heads_have_their_own(self, solver: str | None) -> None:
        (q, k, v), rule = qkv(), build("entmax", alpha=None, solver=solver)
        for head, alpha in enumerate(rule.alpha().tolist()):
            fixed = build("entmax", alpha=alpha)
            torch.testing.assert_close(
                rule(Inputs(q, k), v)[:, head], fixed(Inputs(q, k), v)[:, head], atol=2e-6, rtol=1e-5
            )

    @pytest.mark.parametrize("solver", [None, "bisection"])
    def test_gradient_of_alpha(self, solver: str | None) -> None:
        """d/dalpha = -0.134463 at alpha 1.5, times the sigmoid's 1/4; by finite differences in float64."""
        rule = build("entmax", alpha=None, heads=1, head_dim=1, scale=1.0, solver=solver)
        k = torch.tensor(ROW)[None, None, :, None]
        row = rule.weights(Inputs(torch.ones_like(k), k))[0, 0, -1]
        assert rule.alpha().item() == 1.5
        (row @ torch.tensor([1.0, 2, 3, 4])).backward()
        assert rule.free.grad.item() == pytest.approx(-0.134463 / 4, abs=1e-6)

    @pytest.mark.parametrize("solver", [None, "bisection"])
    def test_gradients_flow_to_every_head(self, solver: str | None) -> None:
        """By differences of the outputs, also where sequences are taken one by one."""
        q, k, v = qkv()
        rule = build("entmax", alpha=None, solver=solver)

        def loss(free: torch.Tensor) -> torch.Tensor:
            rule.free.data.copy_(free)
            return rule(Inputs(q, k), v).square().sum()

        start = rule.free.detach().clone()
        loss(start).backward()
        for head in range(H):
            step = torch.zeros(H)
            step[head] = 1e-2
            with torch.no_grad():
                slope = (loss(start + step) - loss(start - step)) / 2e-2
            assert rule.free.grad[head].item() == pytest.approx(slope.item(), rel=1e-2, abs=1e-3)

    def test_finite_at_huge_logits(self) -> None:
        q, k, v = (x.requires_grad_() for x in qkv())
        for scale in (0.0, 1e6):
            rule = build("entmax", alpha=None)
            rule(Inputs(scale * q, k), v).sum().backward()
            assert rule.free.grad.isfinite().all()
            assert all(x.grad.isfinite().all() for x in (q, k, v))

    def test_default_is_fixed(self) -> None:
        assert list(mixing("entmax").parameters()) == []
