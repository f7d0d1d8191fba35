"""Reparametrizations against their definitions: vectors, invariants, gradients, what they refuse."""

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from pydantic.dataclasses import dataclass
from torch import nn

from conf.axis import CHECKED, ConfigError
from models.gpt import GPT, initialize
from models.layers import Linear
from models.parametrization import groups
from models.placement.pre import PreConfig
from models.reparametrization.base import REPARAMETRIZATION, linears
from models.reparametrization.lawn import LAWNConfig, tangent
from models.reparametrization.norm_loss import gradient
from models.reparametrization.sigma import SpectralScale
from models.reparametrization.tvr import rescaled
from models.reparametrization.weight_conditioning import RowEquilibration
from tests.conftest import randn, tiny
from train.config.schema import Config
from train.run.module import ProxyModule

NAMES = sorted(set(REPARAMETRIZATION.choices) - {"none"})
BLOCK = ["attention.query", "attention.key", "attention.value", "attention.out", "mlp.up", "mlp.down"]


def built(*overrides: str) -> GPT:
    config = tiny(*overrides)
    model = GPT(config, vocab_size=config.data.vocab_size, context=config.context)
    initialize(model, config, 0)
    return model


class Steps:
    """Optimizer steps of a tiny proxy, each on tokens of its own."""

    def __init__(self, *overrides: str) -> None:
        self.config = tiny(*overrides)
        self.proxy = ProxyModule(self.config)
        self.model = self.proxy.model
        self.optimizer: Any = self.proxy.configure_optimizers()
        self.step = 0

    def tokens(self, step: int) -> torch.Tensor:
        shape = (self.config.batch_size, self.config.context + 1)
        return torch.randint(self.config.data.vocab_size, shape, generator=torch.Generator().manual_seed(step))

    def gradients(self) -> None:
        self.optimizer.zero_grad()
        self.proxy.loss_of(self.tokens(self.step), False, self.step)[0].backward()
        self.proxy.clip(self.step)

    def update(self) -> float:
        lr = self.proxy.update(self.optimizer, self.step)
        self.step += 1
        return lr

    def run(self, count: int) -> "Steps":
        for _ in range(count):
            self.gradients()
            self.update()
        return self


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class TestSigma:
    """Zhai et al. 2023."""

    def scale(self, weight: torch.Tensor, gamma: float | None = 1.0) -> SpectralScale:
        found = SpectralScale(weight.shape[1], weight.shape[0]).to(weight.dtype)
        found.start(weight, gamma)
        return found

    def test_vector(self) -> None:
        weight = torch.tensor([[2.0, 1, 0], [0, 1, 3]])
        values = torch.linalg.svdvals(self.scale(weight)(weight)).detach()
        torch.testing.assert_close(values, torch.tensor([1, 0.686774]), atol=1e-5, rtol=0)
        assert self.scale(weight, None).gamma.item() == pytest.approx(3.192582, abs=1e-5)

    @pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
    def test_iteration_converges_to_the_spectral_norm(self, shape: tuple[int, int]) -> None:
        scale, weight = self.scale(randn(*shape)), randn(*shape, seed=1)
        for _ in range(300):
            scale.step(weight)
        assert torch.linalg.matrix_norm(scale(weight), 2).item() == pytest.approx(1, abs=1e-5)

    @pytest.mark.parametrize("training", [True, False])
    def test_the_scale_of_the_weight_cancels(self, training: bool) -> None:
        weight = randn(5, 7)
        scale = self.scale(weight).train(training)
        torch.testing.assert_close(scale(1000 * weight), scale(weight), rtol=1e-5, atol=1e-6)

    def test_gradient_is_that_of_the_spectral_norm(self) -> None:
        """With converged vectors, which are stationary, autograd through V alone is exact."""
        weight = randn(3, 4, dtype=torch.float64).requires_grad_()
        scale, other = self.scale(weight).double(), randn(3, 4, seed=1, dtype=torch.float64)
        for _ in range(500):
            scale.step(weight.detach())
        (ours,) = torch.autograd.grad((scale(weight) * other).sum(), weight)
        exact = weight / torch.linalg.matrix_norm(weight, 2)
        (theirs,) = torch.autograd.grad((exact * other).sum(), weight)
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=0)
        assert (ours * weight).sum().abs() < 1e-7, "a scale-free function has no gradient along the weight"

    def test_gradient_of_gamma(self) -> None:
        weight = randn(3, 4)
        scale = self.scale(weight)
        scale(weight).sum().backward()
        assert scale.gamma.grad is not None
        expected = (weight / torch.linalg.matrix_norm(weight, 2)).sum()
        assert scale.gamma.grad.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_every_linear_layer_and_nothing_else(self) -> None:
        model = built("reparametrization=sigma", "model.depth=2")
        names = {name for name, p in model.named_parameters() if name.endswith("gamma")}
        layers = [f"blocks.{i}.{name}" for i in (0, 1) for name in BLOCK]
        assert names == {f"{name}.map.gamma" for name in [*layers, "head"]}
        for _, linear in linears(model):
            assert torch.linalg.matrix_norm(linear.matrix(), 2).item() == pytest.approx(1, abs=1e-5)

    def test_started_at_sigma_the_model_is_the_plain_one(self) -> None:
        tokens = torch.arange(8)[None]
        ours = built("reparametrization=sigma", "reparametrization.gamma_init=sigma")(tokens)[0]
        torch.testing.assert_close(ours, built()(tokens)[0], atol=1e-5, rtol=1e-5)

    def test_one_power_iteration_each_step_as_the_authors_code(self) -> None:
        """Their forward pass in training takes the step, stores u and divides; ours takes it after the update."""
        run = Steps("reparametrization=sigma")
        linear = run.model.blocks[0].mlp.up  # type: ignore[union-attr]
        u = torch.linalg.svd(linear.weight.detach())[2][0]
        for _ in range(3):
            weight = linear.weight.detach().clone()
            v = nn.functional.normalize(weight.mv(u), dim=0)
            u = nn.functional.normalize(weight.T.mv(v), dim=0)
            expected = weight / torch.einsum("c,cd,d->", v, weight, u) * linear.map.gamma.detach()
            torch.testing.assert_close(linear.matrix().detach(), expected, atol=1e-6, rtol=1e-5)
            run.run(1)
        # An evaluation after the last update steps on from the stored u.
        run.model.eval()
        weight = linear.weight.detach()
        v, u = linear.map.v, linear.map.u
        v = nn.functional.normalize(weight.mv(u), dim=0)
        u = nn.functional.normalize(weight.T.mv(v), dim=0)
        expected = weight / torch.einsum("c,cd,d->", v, weight, u) * linear.map.gamma.detach()
        torch.testing.assert_close(linear.matrix().detach(), expected, atol=1e-6, rtol=1e-5)

    def test_forward_passes_leave_the_buffers_alone(self) -> None:
        model = Steps("reparametrization=sigma").run(2).model
        before = {name: b.clone() for name, b in model.named_buffers() if ".map." in name}
        for training in (True, False):
            model.train(training)
            first = model(torch.arange(8)[None])[0]
            assert torch.equal(model(torch.arange(8)[None])[0], first)
        assert len(before) == 2 * 7
        after = dict(model.named_buffers())
        assert all(torch.equal(after[name], buffer) for name, buffer in before.items())

    def test_micro_batches_add_up_to_the_batch(self) -> None:
        whole, parts = (Steps("reparametrization=sigma").run(2) for _ in range(2))
        whole.gradients()
        parts.optimizer.zero_grad()
        for half in parts.tokens(2).chunk(2):
            (parts.proxy.loss_of(half, False, 2)[0] / 2).backward()
        parts.proxy.clip(2)
        for one, other in zip(whole.proxy.tensors, parts.proxy.tensors, strict=True):
            assert one.grad is not None
            assert other.grad is not None
            torch.testing.assert_close(other.grad, one.grad, atol=1e-6, rtol=1e-4)

    def test_autocast_leaves_it_in_fp32(self) -> None:
        weight = randn(6, 5)
        scale = self.scale(weight)
        with torch.autocast("cpu", torch.bfloat16):
            found = scale(weight)
        assert found.dtype == torch.float32
        assert torch.equal(found, scale(weight))

    @pytest.mark.slow
    def test_compiled_it_is_the_same(self) -> None:
        torch.compiler.reset()
        run = Steps("reparametrization=sigma").run(1)
        tokens = run.tokens(0)[:, :-1]
        compiled: Any = torch.compile(run.model.hidden, backend="aot_eager")
        for _ in range(2):
            found = []
            for hidden in (run.model.hidden, compiled):
                run.optimizer.zero_grad()
                x_BTD, _ = hidden(tokens, False)
                x_BTD.square().sum().backward()
                gamma = run.model.blocks[0].mlp.down.map.gamma  # type: ignore[union-attr]
                found.append((x_BTD.detach(), gamma.grad.clone()))
            torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)
            run.run(1)

    def test_gamma_has_metrics_of_its_own(self) -> None:
        names = Steps("reparametrization=sigma").proxy.tensor_names
        assert {"block0/attention.query.map.gamma", "head.map.gamma"} <= set(names)


class TestWeightConditioning:
    """Saratchandran et al. 2024."""

    def test_vector(self) -> None:
        weight = torch.tensor([[3.0, 4], [0, 0.5]])
        found = RowEquilibration()(weight)
        torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0, 1]]))
        assert torch.linalg.cond(weight).item() == pytest.approx(16.7737, abs=1e-3)
        assert torch.linalg.cond(found).item() == pytest.approx(3.0, abs=1e-5)

    def test_invariant_to_the_scale_of_each_row(self) -> None:
        weight, scale = randn(5, 7), torch.tensor([1e-3, 0.1, 1, 10, 1e3])
        torch.testing.assert_close(RowEquilibration()(scale[:, None] * weight), RowEquilibration()(weight))

    def test_gradients_are_orthogonal_to_rows(self) -> None:
        weight = randn(5, 7).requires_grad_()
        (RowEquilibration()(weight) * randn(5, 7, seed=1)).sum().backward()
        assert weight.grad is not None
        assert (weight.grad * weight).sum(1).abs().max() < 1e-6

    def test_condition_falls_where_rows_differ_in_length(self) -> None:
        for seed in range(5):
            weight = randn(6, 12, seed=seed) * torch.logspace(-2, 2, 6)[:, None]
            assert torch.linalg.cond(RowEquilibration()(weight)) < torch.linalg.cond(weight) / 100

    def test_matrices_of_blocks_only(self) -> None:
        model = built("reparametrization=weight_conditioning", "init=normal")
        unit = {
            name for name, m in linears(model) if torch.allclose(m.matrix().norm(dim=1), torch.ones(m.out_features))
        }
        assert unit == {f"blocks.0.{name}" for name in BLOCK}


class TestTVR:
    """bluorion-com/weight_rescaling."""

    def test_vector(self) -> None:
        found = rescaled(torch.tensor([-0.03, -0.01, 0.02, 0.04]), 0.01, 1.2)
        torch.testing.assert_close(
            found, torch.tensor([-0.00625718, 0.00017549, 0.00982451, 0.01625718]), atol=1e-8, rtol=0
        )

    @pytest.mark.parametrize("ratio", [1.1, 1.3])
    def test_std_is_the_target_beyond_the_threshold_and_the_mean_stays(self, ratio: float) -> None:
        weight = randn(50, 40)
        weight = 0.02 * ratio * weight / weight.std() + 0.3
        found = rescaled(weight, 0.02, 1.2)
        if ratio < 1.2:
            assert torch.equal(found, weight)
        else:
            assert found.std().item() == pytest.approx(0.02, rel=1e-4)
            assert found.mean().item() == pytest.approx(weight.mean().item(), rel=1e-6)

    def test_at_multiples_of_every_and_in_blocks_alone(self) -> None:
        run = Steps("reparametrization=tvr", "reparametrization.every=2", "optimizer.lr=0.1", "schedule=constant")
        for step in range(4):
            run.run(1)
            stds = {name: linear.weight.std().item() for name, linear in linears(run.model)}
            assert stds["head"] > 0.015
            if step % 2:
                assert all(std == pytest.approx(0.01, rel=1e-4) for n, std in stds.items() if n != "head")
            else:
                assert all(abs(std - 0.01) > 1e-4 for std in stds.values())

    def test_target_follows_depth_like_lir(self) -> None:
        given = [
            "reparametrization.every=1",
            "reparametrization.scale_with_depth=true",
            "reparametrization.target_std=0.005",
        ]
        model = Steps("reparametrization=tvr", *given, "init=lir", "model.depth=3").run(1).model
        for name, linear in linears(model.blocks):
            expected = 0.005 / math.sqrt(int(name.split(".")[0]) + 1)
            assert linear.weight.std().item() == pytest.approx(expected, rel=1e-4)

    def test_weights_that_are_not_numbers_stay(self) -> None:
        assert rescaled(torch.full((4,), math.nan), 0.01, 1.2).isnan().all()


class TestNormLoss:
    """Georgiou et al. 2021."""

    def test_vector(self) -> None:
        weight = torch.tensor([[3.0, 4], [0, 0.5]])
        torch.testing.assert_close(gradient(weight, 0.01), torch.tensor([[0.048, 0.064], [0, -0.01]]))

    def test_analytic_gradient(self) -> None:
        weight = randn(5, 7, dtype=torch.float64).requires_grad_()
        (expected,) = torch.autograd.grad(0.3 * (1 - weight.norm(dim=1)).square().sum(), weight)
        torch.testing.assert_close(gradient(weight.detach(), 0.3), expected)

    def test_no_pull_on_unit_rows_nor_on_zeros(self) -> None:
        unit = nn.functional.normalize(randn(5, 7), dim=1)
        assert gradient(unit, 1.0).abs().max() < 1e-6
        assert torch.equal(gradient(torch.zeros(2, 3), 1.0), torch.zeros(2, 3))

    def test_the_step_is_the_optimizer_s_then_the_pull(self) -> None:
        """Against the run without, with decay switched off there."""
        plain = Steps("optimizer.decay=none").run(1)
        ours = Steps("reparametrization=norm_loss", "reparametrization.factor=2", "optimizer.decay=none").run(1)
        lr = plain.config.optimizer.lr * plain.config.schedule.factor(0, steps=4, peak=plain.config.optimizer.lr)
        expected = dict(linears(plain.model))
        for name, linear in linears(ours.model):
            weight = expected[name].weight.detach()
            torch.testing.assert_close(linear.weight.detach(), weight - lr * gradient(weight, 2.0))
        assert torch.equal(ours.model.embedding.weight, plain.model.embedding.weight)

    def test_matrices_are_not_decayed_and_the_rest_is(self) -> None:
        model = built("reparametrization=norm_loss")
        check_decay(model, tiny("reparametrization=norm_loss"), {name for name, _ in linears(model)})


def check_decay(model: GPT, config: Config, free: set[str]) -> None:
    """Only the matrices called so are without decay."""
    name = {id(p): n for n, p in model.named_parameters()}
    found = groups(config.parametrization, model, config.model)
    without = {name[id(p)] for g in found if not g.scaling.decays for p in g.parameters}
    assert without == {f"{n}.weight" for n in free}
    assert {g.scaling.decays for g in found} == {True, False}


class TestLAWN:
    """Our interpretation of Gupta et al. 2021."""

    GIVEN = ("reparametrization=lawn", "steps=12", "schedule=constant", "schedule.warmup_steps=0")
    FREE = (*GIVEN, "reparametrization.free_steps=4", "reparametrization.warmup_steps=3")

    def test_vector(self) -> None:
        """Plain gradient descent at LR 0.1: w = [3, 4], g = [1, 1]."""
        model = nn.Module()
        model.head = Linear(2, 1)
        model.head.weight.data.copy_(torch.tensor([[3.0, 4]]))
        model.head.weight.grad = torch.ones(1, 2)
        lawn = LAWNConfig(free_steps=0).build(model)
        with torch.no_grad():
            lawn.before_step(model, 0, 10)
            torch.testing.assert_close(model.head.weight.grad, torch.tensor([[0.16, -0.12]]))
            model.head.weight.sub_(0.1 * model.head.weight.grad)
            lawn.after_step(model, 0, 0.1)
        torch.testing.assert_close(model.head.weight.detach(), torch.tensor([[2.983976, 4.011968]]))

    def test_a_tangent_is_orthogonal_and_a_projection(self) -> None:
        x, weight = randn(4, 5), randn(4, 5, seed=1)
        once = tangent(x, weight)
        assert (once * weight).sum().abs() < 1e-5
        torch.testing.assert_close(tangent(once, weight), once)
        assert torch.equal(tangent(x, torch.zeros(4, 5)), x)

    def test_the_free_phase_is_the_base_optimizer(self) -> None:
        plain = Steps("steps=12", "schedule=constant", "schedule.warmup_steps=0", "optimizer.decay=none").run(4)
        ours = Steps(*self.FREE, "optimizer.decay=none").run(4)
        after, expected = weights(ours.model), weights(plain.model)
        assert all(torch.equal(after[name], expected[name]) for name in expected)
        assert not torch.equal(ours.run(1).model.head.weight, plain.run(1).model.head.weight)

    @pytest.mark.parametrize("attention", [False, True])
    def test_norms_are_frozen_at_the_switch(self, attention: bool) -> None:
        run = Steps(*self.FREE, f"reparametrization.attention={str(attention).lower()}").run(4)
        start = {name: linear.weight.norm().item() for name, linear in linears(run.model)}
        before = weights(run.model)
        run.run(6)
        kept = {n for n, m in linears(run.model) if m.weight.norm().item() == pytest.approx(start[n], rel=1e-6)}
        mlp = {"blocks.0.mlp.up", "blocks.0.mlp.down", "head"}
        assert kept == (set(start) if attention else mlp)
        assert all(not torch.equal(before[n], w) for n, w in weights(run.model).items()), "directions are trained"

    def test_gradients_reach_the_moments_without_their_radial_part(self) -> None:
        # qk-norm makes the gradients of queries and keys tangents by itself.
        run = Steps(*self.FREE, "qk_norm=none").run(4)
        run.gradients()
        for name, linear in linears(run.model):
            radial = (linear.weight.grad * linear.weight).sum().abs() / linear.weight.grad.norm()
            assert (radial < 1e-5) == (".attention." not in name), name

    def test_the_constrained_phase_warms_up_afresh(self) -> None:
        run, lrs = Steps(*self.FREE), []
        for _ in range(8):
            run.gradients()
            lrs.append(run.update() / run.config.optimizer.lr)
        assert lrs == pytest.approx([1, 1, 1, 1, 1 / 3, 2 / 3, 1, 1])

    def test_without_a_free_phase_there_is_one_warm_up(self) -> None:
        run = Steps(*self.GIVEN, "reparametrization.free_steps=0", "reparametrization.warmup_steps=3")
        assert run.model.reparametrization.lr_factor(0, 12) == 1

    def test_constrained_matrices_are_not_decayed(self) -> None:
        model = built("reparametrization=lawn")
        check_decay(model, tiny("reparametrization=lawn"), {"blocks.0.mlp.up", "blocks.0.mlp.down", "head"})

    def test_zeros_stay_free(self) -> None:
        """The matrix of shared attention starts at zero, so it has no norm to keep."""
        given = (*self.GIVEN, "reparametrization.free_steps=0", "reparametrization.attention=true")
        run = Steps(*given, "share_attention=2", "model.depth=2", "optimizer.lr=1e-2").run(3)
        found = dict(run.model.named_parameters())["blocks.1.attention.compensation.weight"].detach()
        # Adam's first three steps move nearly every element by the LR, two of them at the full one.
        assert 1e-2 < float(found.square().mean().sqrt()) < 4e-2

    def test_matrices_of_norms_are_free(self) -> None:
        config = tiny("reparametrization=lawn", "reparametrization.attention=true", "norm=gated")
        model = built("reparametrization=lawn", "reparametrization.attention=true", "norm=gated")
        check_decay(model, config, {*(f"blocks.0.{name}" for name in BLOCK), "head"})

    def test_state_goes_on_from_a_copy(self) -> None:
        """What a checkpoint keeps is enough in the middle of the constrained phase."""
        run = Steps(*self.FREE).run(6)
        again = Steps(*self.FREE)
        again.model.load_state_dict(copy.deepcopy(run.model.state_dict()))
        again.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
        again.step = 6
        expected, found = weights(run.run(2).model), weights(again.run(2).model)
        assert all(torch.equal(expected[name], found[name]) for name in expected)


class TestMuCentering:
    """Stollenwerk et al. 2026."""

    def test_rows_of_the_head_have_mean_zero_after_each_step(self) -> None:
        run = Steps("reparametrization=mu_centering")
        for _ in range(3):
            run.run(1)
            assert run.model.head.weight.mean(0).abs().max() < 1e-7

    def test_cross_entropy_does_not_see_it(self) -> None:
        run = Steps("reparametrization=mu_centering")
        with torch.no_grad():
            run.model.head.weight.add_(randn(16))
            tokens = run.tokens(0)
            before = run.proxy.loss_of(tokens, True)[1]
            run.model.reparametrization.after_step(run.model, 0, 0.1)
            after = run.proxy.loss_of(tokens, True)[1]
        assert after["train/loss"].item() == pytest.approx(before["train/loss"].item(), rel=1e-5)
        assert abs(after["output/logit_mean"].item()) < 1e-6 < abs(before["output/logit_mean"].item())

    def test_the_step_is_the_optimizer_s_then_the_centering(self) -> None:
        plain, ours = Steps().run(1).model, Steps("reparametrization=mu_centering").run(1).model
        expected = plain.head.weight - plain.head.weight.mean(0)
        torch.testing.assert_close(ours.head.weight, expected)
        assert torch.equal(ours.embedding.weight, plain.embedding.weight)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Constrained(PreConfig):
    """A placement that keeps weights in bounds itself."""

    sets_weights_each_step = True

    def constrain(self, model: Any) -> None:
        pass


class TestRefusals:
    @pytest.mark.parametrize("name", NAMES)
    def test_placements_that_constrain_weights(self, name: str) -> None:
        with pytest.raises(ValueError, match=f"={name} changes matrices that placement=pre constrains"):
            dataclasses.replace(tiny(f"reparametrization={name}"), placement=Constrained())
        dataclasses.replace(tiny(), placement=Constrained())

    @pytest.mark.parametrize("name", ["sigma", "weight_conditioning"])
    def test_norms_of_zero(self, name: str) -> None:
        for more in ([], ["reparametrization.gamma_init=sigma"]) if name == "sigma" else ([],):
            with pytest.raises(ConfigError) as error:
                tiny(f"reparametrization={name}", "parametrization=mup_full", *more)
            assert str(error.value) == (
                f"reparametrization={name} divides matrices by their norms, but parametrization=mup_full starts "
                "some at zero: use parametrization=standard or reparametrization=none"
            )
        tiny(f"reparametrization={name}", "parametrization=mup_simple")

    @pytest.mark.parametrize(
        ("name", "parametrization"),
        [("sigma", "u_mup"), ("weight_conditioning", "u_mup"), ("tvr", "u_mup"), ("norm_loss", "u_mup"),
         ("sigma", "mup_intermediate")],
    )  # fmt: skip
    def test_scales_of_the_parametrization(self, name: str, parametrization: str) -> None:
        """u_mup counts on weights of std 1, and mup_intermediate changes the std of the head."""
        with pytest.raises(ConfigError) as error:
            tiny(f"reparametrization={name}", f"parametrization={parametrization}")
        assert str(error.value) == (
            f"reparametrization={name} sets the scale of matrices, and so does parametrization={parametrization}: "
            "use parametrization=mup_simple or reparametrization=none"
        )
        tiny("reparametrization=sigma", "reparametrization.gamma_init=sigma", f"parametrization={parametrization}")
        tiny("reparametrization=weight_conditioning", "parametrization=mup_intermediate")

    @pytest.mark.parametrize("placement", ["deepnorm", "sub_ln"])
    @pytest.mark.parametrize("name", ["sigma", "weight_conditioning"])
    def test_scaled_initial_weights(self, name: str, placement: str) -> None:
        with pytest.raises(ConfigError) as error:
            tiny(f"reparametrization={name}", f"placement={placement}")
        assert str(error.value) == (
            f"reparametrization={name} divides out the scale that placement={placement} gives the initial weights: "
            "use reparametrization=none or placement=pre"
        )
        tiny("reparametrization=sigma", "reparametrization.gamma_init=sigma", f"placement={placement}")
        tiny("reparametrization=tvr", f"placement={placement}")

    def test_mu_loss(self) -> None:
        with pytest.raises(ConfigError) as error:
            tiny("reparametrization=mu_centering", "loss.mu_loss=1e-4")
        assert str(error.value) == (
            "reparametrization=mu_centering removes the mean that loss.mu_loss=0.0001 penalizes: "
            "use loss.mu_loss=0 or reparametrization=none"
        )

    def test_phases_longer_than_the_run(self) -> None:
        with pytest.raises(ConfigError) as error:
            tiny("reparametrization=lawn", "reparametrization.free_steps=3", "reparametrization.warmup_steps=2")
        assert str(error.value) == (
            "reparametrization.free_steps=3 and warmup_steps=2 of reparametrization=lawn are longer than the run, "
            "steps=4: shorten one of them"
        )


@pytest.mark.parametrize("placement", ["post", "res_post", "peri", "hybridnorm"])
@pytest.mark.parametrize("name", NAMES)
def test_goes_with_other_placements(name: str, placement: str) -> None:
    """Projections with norms of their own are Linear layers too."""
    run = Steps(f"reparametrization={name}", f"placement={placement}").run(2)
    assert all(p.isfinite().all() for p in run.model.parameters())
