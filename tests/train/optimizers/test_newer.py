"""NorMuon, AdEMAMix, MARS and the hyperball optimizers, against their equations."""

import math
import re
from typing import Any

import pytest
import torch

from conf.axis import ConfigError, axes
from models.parametrization import ParameterGroup, groups
from tests.conftest import complete, randn, tiny
from tests.train.optimizers.steps import optimizer, trace, updated
from train.cli.show import rows
from train.config.schema import Config
from train.optimizers.hyperball import turned
from train.run.module import ProxyModule

F64 = torch.float64


class TestNorMuon:
    def test_the_rows_get_equal_sizes_and_the_whole_an_rms_of_a_fifth(self) -> None:
        """At the first step v is 0.05 times the row's mean square, so that every row of u has the same RMS."""
        u = -updated(optimizer("normuon", lr=1.0, decay="none"), torch.zeros(8, 24), [randn(8, 24)])
        rms_of_rows = u.square().mean(1).sqrt()
        torch.testing.assert_close(rms_of_rows, torch.full((8,), 0.2), atol=1e-3, rtol=0)

    def test_equations(self) -> None:
        """With Muon's own orthogonalized momenta O_t."""
        gradients = [randn(6, 4, seed=i) for i in (1, 2, 3)]
        muon = trace(optimizer("muon", lr=1.0, decay="none", adjust_lr_fn="original"), torch.zeros(6, 4), gradients)
        o_of_steps = [(a - b) / 1.5**0.5 for a, b in zip([torch.zeros(6, 4), *muon], muon, strict=False)]
        theta, v = torch.zeros(6, 4), torch.zeros(6, 1)
        for o in o_of_steps:
            v = 0.7 * v + 0.3 * o.square().mean(1, keepdim=True)
            u = o / v.sqrt()
            theta = theta - 0.1 * 0.2 * u / u.square().mean().sqrt()
        found = updated(optimizer("normuon", lr=0.1, decay="none", row_beta2=0.7), torch.zeros(6, 4), gradients)
        torch.testing.assert_close(found, theta, atol=1e-4, rtol=0)


class TestAdEMAMix:
    @pytest.mark.parametrize("grow", [0, 4])
    def test_equations(self, grow: int) -> None:
        start, gradients = randn(5, dtype=F64), [randn(5, seed=i, dtype=F64) for i in range(1, 7)]
        theta, m, n, v = start, *(torch.zeros(5, dtype=F64) for _ in range(3))
        half_life = {b: math.log(0.5) / math.log(b) for b in (0.9, 0.99)}
        for t, g in enumerate(gradients, start=1):
            grown = min(1.0, t / grow) if grow else 1.0
            beta3 = 0.5 ** (1 / ((1 - grown) * half_life[0.9] + grown * half_life[0.99]))
            m, v, n = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2, beta3 * n + (1 - beta3) * g
            u = (m / (1 - 0.9**t) + 5 * grown * n) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            theta = theta - 0.01 * theta - 3e-3 * u
        config = optimizer("ademamix", beta3=0.99, grow_steps=grow, weight_decay=0.01)
        torch.testing.assert_close(updated(config, start, gradients), theta, atol=1e-10, rtol=1e-10)

    def test_without_the_slow_mean_it_is_adamw(self) -> None:
        start, gradients = randn(5, dtype=F64), [randn(5, seed=i, dtype=F64) for i in (1, 2, 3)]
        fields: dict[str, Any] = {"lr": 1e-2, "beta2": 0.95}
        one, other = optimizer("ademamix", alpha=0, **fields), optimizer("adamw", **fields)
        torch.testing.assert_close(updated(one, start, gradients), updated(other, start, gradients))

    def test_a_run_grows_them_over_all_steps(self) -> None:
        assert optimizer("ademamix").in_force(4000, 512).grow_steps == 4000
        assert optimizer("ademamix", grow_steps=0).in_force(4000, 512).grow_steps == 0


class TestMARS:
    def test_equations(self) -> None:
        """In the first step the gradient of the step before is 0. The second correction is cut."""
        start, gradients = randn(2, 3, dtype=F64), [0.1 * 16**i * randn(2, 3, seed=i, dtype=F64) for i in (0, 1, 0)]
        theta, m, v, last = start, *(torch.zeros(2, 3, dtype=F64) for _ in range(3))
        norms = []
        for t, g in enumerate(gradients, start=1):
            c = g + 0.025 * 0.95 / 0.05 * (g - last)
            norms.append(float(c.norm()))
            c, last = c / max(1.0, norms[-1]), g
            m, v = 0.95 * m + 0.05 * c, 0.99 * v + 0.01 * c**2
            u = m / (1 - 0.95**t) / ((v / (1 - 0.99**t)).sqrt())
            theta = theta - 0.1 * theta - 1e-2 * u
        assert max(norms) > 1 > min(norms)
        found = updated(optimizer("mars", weight_decay=0.1, eps=1e-15), start, gradients)
        torch.testing.assert_close(found, theta, atol=1e-10, rtol=1e-10)

    def test_vectors_use_adamw(self) -> None:
        start, gradients = randn(5, dtype=F64), [randn(5, seed=i, dtype=F64) for i in (1, 2, 3)]
        fields: dict[str, Any] = {"weight_decay": 0.1, "beta1": 0.95, "beta2": 0.99, "eps": 1e-15}
        found, expected = (updated(optimizer(n, **fields), start, gradients) for n in ("mars", "adamw"))
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


class TestHyperball:
    def test_vector(self) -> None:
        """W = [[3, 0], [0, 4]] has R = 5. u = [[0, 6], [8, 0]] at LR 0.1 gives W - [[0, 0.3], [0.4, 0]], rescaled."""
        found = turned(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 6.0], [8.0, 0.0]]), 0.1)
        expected = torch.tensor([[2.985112, -0.298511], [-0.398015, 3.980149]])
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("name", ["adamh", "muonh"])
    @pytest.mark.parametrize("kind", ["hidden", "head"])
    def test_equations(self, name: str, kind: Any) -> None:
        """u is the base optimizer's; a head has AdamW's in both."""
        start, gradients = randn(4, 6), [randn(4, 6, seed=i) for i in (1, 2, 3)]
        base = "muon" if (name, kind) == ("muonh", "hidden") else "adamw"
        steps = trace(optimizer(base, lr=1.0, decay="none"), torch.zeros(4, 6), gradients, kind=kind)
        theta, radius = start, start.norm()
        for before, after in zip([torch.zeros(4, 6), *steps], steps, strict=False):
            u = before - after
            moved = theta - 0.2 * radius * u / u.norm()
            theta = radius * moved / moved.norm()
        found = trace(optimizer(name, lr=0.2), start, gradients, kind=kind)
        torch.testing.assert_close(found[-1], theta, atol=2e-3 if base == "muon" else 1e-5, rtol=0)
        assert [float(x.norm()) for x in found] == pytest.approx([float(radius)] * 3, rel=1e-6)

    def test_small_learning_rates_are_exact(self) -> None:
        start = randn(4, 6)
        moved = updated(optimizer("adamh"), start, [randn(4, 6, seed=1)], [1e-4]) - start
        assert float(moved.norm() / start.norm()) == pytest.approx(3e-6, rel=0.1)

    @pytest.mark.parametrize("axis", ["attention", "gate", "head", "layout", "mlp", "placement", "qk_source", "sink"])
    def test_every_held_matrix_has_a_radius(self, axis: str) -> None:
        for name in axes(Config)[axis].choices:
            try:
                config = tiny(*complete(f"{axis}={name}"), "optimizer=adamh")
            except ConfigError:
                continue
            module = ProxyModule(config)
            of_model = groups(config.parametrization, module.model, config.model)
            held = [group for group in of_model if config.optimizer.has_radius(group)]
            assert held
            assert all(p.norm() > 1e-2 for group in held for p in group.parameters), name

    def test_matrices_that_start_near_zero_are_refused(self) -> None:
        """They would stay at the norm of the first warm-up step."""
        for choice in ("augmented_shortcut=2", "share_attention=2"):
            with pytest.raises(ConfigError, match=rf"keeps the norms that matrices start with, and {choice} starts"):
                tiny("optimizer=adamh", choice)
        with pytest.raises(ConfigError, match="use head=linear or optimizer=adamw"):
            tiny("optimizer=muonh", "head=fourier", "data=oscillation")

    @pytest.mark.parametrize("kind", ["embedding", "vector"])
    def test_elsewhere_it_is_adamw(self, kind: Any) -> None:
        start, gradients = randn(4, 3), [randn(4, 3, seed=i) for i in (1, 2)]
        for name in ("adamh", "muonh"):
            config = optimizer(name, adam_lr=0.5)
            expected = updated(optimizer("adamw", lr=0.5 * config.lr), start, gradients)
            assert torch.equal(updated(config, start, gradients, kind=kind), expected)

    def test_hidden_vectors_too(self) -> None:
        vector = torch.nn.Parameter(randn(4))
        config = optimizer("adamh")
        made = config.build([ParameterGroup([vector, torch.nn.Parameter(randn(4, 3))], "hidden")])
        assert sorted(group["radius"] for group in made.param_groups) == [False, True]

    def test_relative_learning_rates_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"^optimizer=adamh sets the size of updates by the norm of the weights"):
            tiny("optimizer=adamh", "parametrization=parameter_rms")


class TestRouters:
    @pytest.mark.parametrize("name", ["muon", "normuon", "muonh"])
    @pytest.mark.parametrize("router", ["topk", "noisy", "stratified"])
    def test_adamw_moves_them(self, name: str, router: str) -> None:
        """The first step without decay is lr sign(g), of muonh R n(W - lr R n(sign g)); experts are orthogonalized."""
        given = [f"optimizer={name}", "optimizer.adam_lr=0.5", "optimizer.decay=none", "mlp=moe", "mlp.experts=4"]
        module = ProxyModule(tiny(*given, f"mlp.router={router}"))
        made = module.configure_optimizers()
        before, lr = [p.detach().clone() for p in module.tensors], 0.01
        for index, parameter in enumerate(module.tensors):
            parameter.grad = randn(*parameter.shape, seed=index)
        for group in made.param_groups:
            group["lr"] = lr * group["lr_scale"]
        made.step()
        routers = 0
        for label, p, start, epsilon in zip(module.tensor_names, module.tensors, before, module.epsilons, strict=True):
            assert p.grad is not None
            if re.search(r"/mlp\.(router|noise|gates)", label):
                routers += 1
                assert epsilon == 1e-8
                expected = start - 0.5 * lr * p.grad.sign()
                if name == "muonh":
                    expected = turned(start, p.grad.sign(), lr)
                torch.testing.assert_close(p.detach(), expected, atol=1e-6, rtol=1e-5)
            elif "/mlp.experts" in label:
                assert epsilon is None
                spread = torch.linalg.svdvals(p.detach() - start)
                assert name != "muon" or spread.max() < 4 * spread.min()
        assert routers == {"topk": 1, "noisy": 2, "stratified": 2}[router]

    def test_what_is_printed_is_what_trains(self) -> None:
        """show=parametrization has AdamW's share of the LR for the router and Muon's for experts."""
        shown = {row[0]: row for row in rows(tiny("optimizer=muon", "optimizer.adam_lr=0.5", "mlp=moe"))}
        assert float(shown["blocks.0.mlp.router.weight"][6]) == pytest.approx(0.015)
        assert float(shown["blocks.0.mlp.experts.0.up.weight"][6]) == pytest.approx(0.03)

    def test_groups_are_those_of_a_checkpoint_of_before(self) -> None:
        """One group per kind, whose parameters are those of before: AdamW's runs go on from old checkpoints."""
        config = tiny("mlp=moe")
        found = groups(config.parametrization, ProxyModule(config).model, config.model)
        assert sorted(group.kind for group in found) == ["embedding", "head", "hidden", "vector"]
        assert {group.kind: len(group.routers) for group in found}["hidden"] == 1
        assert sum(len(group.routers) for group in found) == 1
