"""Optimizers from libraries, against their equations and values of other implementations."""

from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.parametrization import ParameterGroup
from tests.conftest import randn, tiny
from tests.train.optimizers.steps import optimizer, scalars, trace, updated

F64 = torch.float64


class TestStableAdamW:
    SPIKE = [torch.full((2,), g, dtype=F64) for g in (0.01, 0.01, 0.01, 0.01, 0.01, 1.0)]  # noqa: RUF012

    def test_trace(self) -> None:
        """Values of optimi 0.3.3 and pytorch-optimizer 4.1.0."""
        config = optimizer("stable_adamw", lr=0.1, decay="none")
        found = trace(config, torch.tensor([1.0, 2.0], dtype=F64), self.SPIKE)
        assert float(found[4][0]) == pytest.approx(0.500050, abs=1e-6)
        assert float(found[5][0]) == pytest.approx(0.477921, abs=1e-6)

    def test_equations(self) -> None:
        config, lr = optimizer("stable_adamw", weight_decay=0.1), 1e-2
        start, gradients = randn(5, dtype=F64), [10.0**i * randn(5, seed=i, dtype=F64) for i in (1, 0, 2, 1)]
        factors = [0.5, 1.0, 0.8, 0.1]
        theta, m, v = start, torch.zeros(5, dtype=F64), torch.zeros(5, dtype=F64)
        cuts = []
        for t, (g, s) in enumerate(zip(gradients, factors, strict=True), start=1):
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
            m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.99**t)
            cuts.append(max(1.0, float((g**2 / v_hat).mean().sqrt())))
            theta = theta - s / cuts[-1] * 0.1 * theta
            theta = theta - s * lr / cuts[-1] * m_hat / (v_hat.sqrt() + 1e-6)
        assert 1 < max(cuts) < 10
        torch.testing.assert_close(updated(config, start, gradients, factors), theta, atol=1e-12, rtol=1e-12)

    def test_without_spikes_it_is_adamw(self) -> None:
        """Shrinking gradients give RMS_t < 1, which leaves the LR unchanged."""
        start, gradients = randn(5, dtype=F64), [0.5**i * randn(5, dtype=F64) for i in range(6)]
        fields: dict[str, Any] = {"beta2": 0.99, "eps": 1e-6}
        found, adamw = (updated(optimizer(n, **fields), start, gradients) for n in ("stable_adamw", "adamw"))
        torch.testing.assert_close(found, adamw, atol=1e-12, rtol=1e-12)


class TestLion:
    def test_trace(self) -> None:
        """Starts at 1; LR 0.01, coupled decay 0.1, gradients 0.5 and -0.2."""
        config = optimizer("lion", lr=0.01, decay="coupled", weight_decay=0.1)
        found = trace(config, *scalars([1.0]), scalars([0.5, -0.2]))
        assert [float(x) for x in found] == pytest.approx([0.989, 0.998011], abs=1e-9)

    def test_every_weight_moves_by_the_lr_whatever_the_gradient(self) -> None:
        config, start = optimizer("lion", decay="none"), randn(50, dtype=F64)
        for scale in (1e-20, 1.0, 1e20):
            moved = updated(config, start, [scale * randn(50, seed=1, dtype=F64)], [0.5]) - start
            torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.5 * config.lr), atol=1e-12, rtol=1e-12)


class TestAdafactor:
    def test_first_step_of_a_matrix(self) -> None:
        config = optimizer("adafactor", lr=0.01, decay="none")
        found = updated(config, torch.ones(2, 2), [torch.tensor([[1.0, 2.0], [3.0, 4.0]])])
        expected = torch.tensor([[0.992254, 0.989046], [0.989608, 0.990202]])
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)

    def test_equations_of_a_vector(self) -> None:
        """v is not factored: v_t = b v + (1 - b) g^2 with b = 1 - t^-0.8. u is clipped to RMS 1."""
        start, gradients = randn(6, dtype=F64), [10.0**i * randn(6, seed=i, dtype=F64) for i in (0, 1, 0)]
        config, theta, v = optimizer("adafactor", lr=0.3, weight_decay=0.1), start, torch.zeros(6, dtype=F64)
        rms = []
        for t, g in enumerate(gradients, start=1):
            v = (1 - t**-0.8) * v + t**-0.8 * g**2
            u = g / v.sqrt()
            rms.append(float(u.square().mean().sqrt()))
            alpha = min(0.3, t**-0.5) * float(theta.square().mean().sqrt())
            theta = theta - 0.1 * theta - alpha * u / max(1.0, rms[-1])
        assert max(rms) > 1 > min(rms)
        torch.testing.assert_close(updated(config, start, gradients), theta, atol=1e-7, rtol=1e-7)

    def test_the_lr_is_a_bound(self) -> None:
        """At step t torch uses min(lr, 1/sqrt(t)), so LRs above 0.5 are equivalent from step 4 on."""
        start, gradients = randn(6, dtype=F64), [randn(6, seed=i, dtype=F64) for i in range(1, 6)]
        one, other = (trace(optimizer("adafactor", lr=lr, decay="none"), start, gradients) for lr in (0.55, 0.6))
        small = trace(optimizer("adafactor", lr=0.1, decay="none"), start, gradients)
        moved = [float(((b - a) / a.square().mean().sqrt()).norm()) for a, b in (one[3:], other[3:], small[3:])]
        assert moved[0] == pytest.approx(moved[1], rel=0.2)
        assert moved[2] < 0.5 * moved[0]

    def test_a_second_factor_of_the_weights_is_refused(self) -> None:
        with pytest.raises(ConfigError) as error:
            tiny("optimizer=adafactor", "parametrization=parameter_rms")
        assert str(error.value) == (
            "optimizer=adafactor scales updates by the RMS of the weights, and so does parametrization=parameter_rms: "
            "use parametrization=standard or optimizer=adamw"
        )


class TestMuon:
    def orthogonalized(self, gradient: torch.Tensor, **changes: Any) -> torch.Tensor:
        """Returns the first update at LR 1, without the adjustment of the LR to the shape."""
        config = optimizer("muon", lr=1.0, decay="none", adjust_lr_fn="original", **changes)
        rows, columns = gradient.shape
        return -updated(config, torch.zeros_like(gradient), [gradient]) / max(1, rows / columns) ** 0.5

    def test_trace(self) -> None:
        """Values of torch.optim.Muon in bf16. The exact polar factor is [[-0.514, 0.857], [0.857, 0.514]]."""
        found = -self.orthogonalized(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        assert found.tolist() == [[0.68359375, -0.81640625], [-0.734375, -0.2470703125]]

    @pytest.mark.parametrize("shape", [(16, 64), (64, 16), (32, 32)])
    def test_singular_values_are_near_one(self, shape: tuple[int, int]) -> None:
        """Those of the gradient span a factor of 50."""
        u, _, vt = torch.linalg.svd(randn(*shape), full_matrices=False)
        gradient = u @ torch.diag(torch.logspace(0, -1.7, min(shape))) @ vt
        values = torch.linalg.svdvals(self.orthogonalized(gradient))
        assert 0.65 < values.min() < values.max() < 1.25

    def test_the_size_of_the_gradient_does_not_matter(self) -> None:
        one = self.orthogonalized(randn(8, 16))
        assert torch.equal(self.orthogonalized(2.0**20 * randn(8, 16)), one)
        torch.testing.assert_close(self.orthogonalized(1e-3 * randn(8, 16)), one, atol=0.03, rtol=0)

    @pytest.mark.parametrize("shape", [(16, 64), (64, 16), (48, 48)])
    def test_the_rms_of_adamw(self, shape: tuple[int, int]) -> None:
        moved = updated(optimizer("muon", lr=1.0, decay="none"), torch.zeros(*shape), [randn(*shape)])
        assert float(moved.square().mean().sqrt()) == pytest.approx(0.2, rel=0.15)

    @pytest.mark.parametrize("kind", ["embedding", "head", "vector"])
    def test_elsewhere_it_is_adamw(self, kind: Any) -> None:
        start, gradients = randn(4, 3), [randn(4, 3, seed=i) for i in (1, 2)]
        found = updated(optimizer("muon", adam_lr=0.5), start, gradients, kind=kind)
        assert torch.equal(found, updated(optimizer("adamw", lr=0.5 * optimizer("muon").lr), start, gradients))

    def test_hidden_vectors_too(self) -> None:
        matrix, vector = torch.nn.Parameter(randn(4, 3)), torch.nn.Parameter(randn(4))
        config = optimizer("muon")
        made = config.build([ParameterGroup([vector, matrix], "hidden")])
        before = vector.detach().clone()
        matrix.grad, vector.grad = randn(4, 3, seed=1), randn(4, seed=2)
        made.step()
        assert torch.equal(vector.detach(), updated(optimizer("adamw", lr=config.lr), before, [randn(4, seed=2)]))
        assert set(made.state[matrix]) == {"momentum_buffer"}


class TestScheduleFree:
    def test_equations_under_warm_up(self) -> None:
        """Defazio et al. 2024, algorithm 1, with x for evaluation and c_t from the squares of the largest LR so far."""
        config = optimizer("schedule_free", lr=0.05, weight_decay=0.01)
        start, gradients = randn(5, dtype=F64), [randn(5, seed=i, dtype=F64) for i in range(1, 7)]
        factors, beta, weights = [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0], 0.9, 0.0
        x, y, z, v = start, start, start, torch.zeros(5, dtype=F64)
        for t, (g, s) in enumerate(zip(gradients, factors, strict=True), start=1):
            v = 0.999 * v + 0.001 * g**2
            step = g / ((v / (1 - 0.999**t)).sqrt() + 1e-8) + 0.01 / 0.05 * y
            z = z - s * 0.05 * step
            weights += (s * 0.05) ** 2
            c = (s * 0.05) ** 2 / weights
            x = (1 - c) * x + c * z
            y = (1 - beta) * z + beta * x
        parameter = torch.nn.Parameter(start.clone())
        made = config.build([ParameterGroup([parameter])])
        for g, s in zip(gradients, factors, strict=True):
            parameter.grad = g.clone()
            made.param_groups[0]["lr"] = config.lr * s
            made.step()
        torch.testing.assert_close(parameter.detach(), y, atol=1e-12, rtol=1e-12)
        trained = parameter.detach().clone()
        with config.evaluating(made):
            torch.testing.assert_close(parameter.detach(), x, atol=1e-12, rtol=1e-12)
        assert torch.equal(parameter.detach(), trained), "an evaluation changed the run"
        parameter.grad = gradients[0].clone()
        made.step()

    @pytest.mark.parametrize("schedule", ["cosine", "wsd", "rsqrt", "linear"])
    def test_other_schedules_are_refused(self, schedule: str) -> None:
        with pytest.raises(ConfigError) as error:
            tiny("optimizer=schedule_free", f"schedule={schedule}")
        assert str(error.value) == (
            f"optimizer=schedule_free replaces the schedule by averaging and clashes with schedule={schedule}: "
            "use schedule=constant"
        )

    @pytest.mark.parametrize(
        ("overrides", "text"),
        [
            (
                ["placement=ngpt", "norm=none", "qk_norm=none"],
                "optimizer=schedule_free averages weights that placement=ngpt sets after each step: "
                "use placement=pre or optimizer=adamw",
            ),
            (
                ["reparametrization=tvr"],
                "optimizer=schedule_free averages other weights than those that reparametrization=tvr measures or "
                "sets: use reparametrization=none or optimizer=adamw",
            ),
            (
                ["parametrization=parameter_rms"],
                "optimizer=schedule_free has no step that parametrization=parameter_rms could scale with the weights: "
                "use parametrization=standard or optimizer=adamw",
            ),
        ],
    )
    def test_other_changes_of_the_weights_are_refused(self, overrides: list[str], text: str) -> None:
        with pytest.raises(ConfigError) as error:
            tiny("optimizer=schedule_free", "schedule=constant", *overrides)
        assert str(error.value) == text


class TestSOAP:
    @staticmethod
    def equations(
        start: torch.Tensor, gradients: list[torch.Tensor], lr: float, decay: float, every: int
    ) -> torch.Tensor:
        """Returns the parameter after all steps, by Vyas et al. 2024, algorithm 3, in terms of matrices."""
        theta, b = start, 0.95
        left = right = q = p = m = v = torch.zeros(0)
        for t, g in enumerate(gradients):
            if t == 0:
                left, right, m, v = 0.05 * g @ g.T, 0.05 * g.T @ g, 0 * g, 0 * g
                q, p = (torch.linalg.eigh(s)[1].flip(1) for s in (left, right))
                continue
            m, v = b * m + (1 - b) * g, b * v + (1 - b) * (q.T @ g @ p) ** 2
            u = q @ ((q.T @ m @ p) / (1 - b**t) / (v / (1 - b**t)).sqrt()) @ p.T
            theta = (theta - lr * u) * (1 - decay)
            left, right = b * left + (1 - b) * g @ g.T, b * right + (1 - b) * g.T @ g
            if t % every == 0:
                order_q, order_p = ((o * (s @ o)).sum(0).argsort(descending=True) for s, o in ((left, q), (right, p)))
                v = v[order_q][:, order_p]
                q, p = torch.linalg.qr((left @ q)[:, order_q])[0], torch.linalg.qr((right @ p)[:, order_p])[0]
        return theta

    @pytest.mark.parametrize(("every", "tolerance"), [(100, 1e-7), (2, 1e-4)])  # the library's QR is in fp32
    def test_equations(self, every: int, tolerance: float) -> None:
        # Square, because a null space has no unique basis.
        start, gradients = randn(5, 5, dtype=F64), [randn(5, 5, seed=i, dtype=F64) for i in range(1, 8)]
        config = optimizer("soap", precondition_frequency=every, weight_decay=0.01, eps=1e-15)
        expected = self.equations(start, gradients, config.lr, 0.01, every)
        torch.testing.assert_close(updated(config, start, gradients), expected, atol=tolerance, rtol=tolerance)

    def test_the_first_step_moves_nothing(self) -> None:
        start = randn(4, 6)
        assert torch.equal(updated(optimizer("soap"), start, [randn(4, 6, seed=1)]), start)

    @pytest.mark.parametrize(("kind", "sides"), [("head", [0, 6]), ("embedding", [0, 6]), ("hidden", [9, 6])])
    def test_preconditioned_sides(self, kind: Any, sides: list[int]) -> None:
        """Embedding and head (vocabulary 9, width 6) are preconditioned along the width only."""
        weight = torch.nn.Parameter(randn(9, 6))
        made = optimizer("soap").build([ParameterGroup([weight], kind)])
        weight.grad = randn(9, 6, seed=1)
        made.step()
        assert [len(side) for side in made.state[weight]["GG"]] == sides
