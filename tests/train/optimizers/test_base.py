"""What every optimizer must do for the training loop: decay modes, groups, epsilon, metrics of updates."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.axis import ConfigError, checked
from data.prepare import prepare
from models.parametrization import ParameterGroup, TensorScaling
from models.parametrization.base import Kind
from tests.conftest import randn
from tests.train.helpers import tiny, trained
from tests.train.optimizers.steps import NAMES, optimizer, updated
from train.cli.show import rows
from train.run.derived import values_in_force
from train.run.module import ProxyModule
from train.run.trainer import Job

KINDS: list[Kind] = ["hidden", "head", "vector"]
WITH_EPSILON = [n for n in NAMES if optimizer(n).epsilon(ParameterGroup([], "vector")) is not None]


def decayed_share(config: Any, kind: Kind, scaling: TensorScaling, factor: float = 1.0) -> float:
    """Returns the share of the weights that decay removes in a step with zero gradients."""
    start, zero = torch.ones(3, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    # SOAP's first step applies no update.
    steps = 2 if config.name == "soap" else 1
    return 1 - float(updated(config, start, [zero] * steps, [factor] * steps, kind=kind, scaling=scaling)[0, 0])


@pytest.mark.parametrize("name", NAMES)
class TestDecay:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("mode", ["independent", "coupled", "none"])
    def test_share(self, name: str, kind: Kind, mode: str) -> None:
        """s_t lambda if independent, s_t eta lambda if coupled, with the decay factor and LR of the tensor's group."""
        scaling, given = TensorScaling(lr=0.25, decay=2.0), {} if mode == "none" else {"weight_decay": 0.03}
        config = optimizer(name, lr=0.5, decay=mode, **given)
        expected = {"independent": 0.03, "coupled": 0.06 * 0.5 * 0.25, "none": 0.0}[mode]
        if name in ("adamh", "muonh"):  # Matrices keep their norm; AdamW's LR is lower.
            config = replace(config, adam_lr=1.0)
            expected *= kind == "vector"
        assert config.decay_at_peak(ParameterGroup([], kind, scaling)) == pytest.approx(expected, rel=1e-12)
        for factor in (1.0, 0.3):
            assert decayed_share(config, kind, scaling, factor) == pytest.approx(factor * expected, rel=1e-9, abs=1e-15)

    @pytest.mark.parametrize("mode", ["independent", "coupled"])
    def test_off_where_a_reparametrization_takes_its_place(self, name: str, mode: str) -> None:
        assert decayed_share(optimizer(name, decay=mode, weight_decay=0.5), "hidden", TensorScaling(decays=False)) == 0

    def test_defaults_are_the_paper_s(self, name: str) -> None:
        assert (optimizer(name).decay, optimizer(name).decay_rate()) == ("independent", 1e-4)
        assert optimizer(name, decay="coupled").decay_rate() == 0.1


class TestGroups:
    @pytest.mark.parametrize("name", NAMES)
    def test_coupled_decay_follows_the_lr_and_independent_decay_does_not(self, name: str) -> None:
        plain, scaled = (ParameterGroup([], "hidden", TensorScaling(lr=lr)) for lr in (4.0, 2.0))
        for decay, factor in (("independent", 1.0), ("coupled", 0.5)):
            made = optimizer(name, decay=decay)
            assert made.lr_scale(scaled) == made.lr_scale(plain) / 2
            assert made.decay_at_peak(scaled) == pytest.approx(factor * made.decay_at_peak(plain))

    def test_hidden_and_part_multiply(self) -> None:
        proxy = ProxyModule(tiny("optimizer.groups.hidden=0.5", "optimizer.groups.query_key=0.5"))
        made: Any = proxy.configure_optimizers()
        found = {id(p): group["lr"] / 0.01 for group in made.param_groups for p in group["params"]}
        assert sorted({found[id(p)] for p in proxy.tensors}) == [0.25, 0.5, 1.0]

    def test_in_a_run(self) -> None:
        """Each tensor has its kind's factor; kinds that are not named have 1."""
        proxy = ProxyModule(tiny("optimizer.groups.embedding=8", "optimizer.groups.head=0.25"))
        made: Any = proxy.configure_optimizers()
        found = {id(p): group["lr"] / 0.01 for group in made.param_groups for p in group["params"]}
        names = {n: found[id(p)] for n, p in zip(proxy.tensor_names, proxy.tensors, strict=True)}
        assert (names.pop("embedding"), names.pop("head")) == (8, 0.25)
        assert set(names.values()) == {1.0}

    def test_a_misspelt_kind_is_refused(self) -> None:
        for given in ("optimizer.groups={heads:2}", "optimizer.groups.heads=2"):
            with pytest.raises(ConfigError, match=r"^unknown key optimizer.groups.heads"):
                tiny(given)
        values = tiny().values()
        values["optimizer"]["groups"]["heads"] = 2.0
        with pytest.raises(
            ConfigError, match=r"^unknown key optimizer.groups.heads: did you mean optimizer.groups.head\?$"
        ):
            checked(type(tiny()), values)


def test_half_life_of_the_second_moment() -> None:
    """After half_life tokens, a squared gradient counts half, whatever the number of tokens per step."""
    config = optimizer("adamw", beta2=0.5, beta2_half_life=10_000)
    for tokens in (100, 500, 10_000):
        assert config.in_force(4000, tokens).beta2 ** (10_000 / tokens) == pytest.approx(0.5, rel=1e-12)
    assert config.in_force(4000, 512).beta2 == pytest.approx(0.9651332, abs=1e-6)
    assert optimizer("adamw", beta2=0.7).in_force(4000, 512).beta2 == 0.7
    given = tiny("optimizer.beta2_half_life=1280")  # 128 tokens per step
    proxy = ProxyModule(given)
    made: Any = proxy.configure_optimizers()
    assert made.param_groups[0]["betas"] == (0.9, 2**-0.1)
    assert proxy._in_force.beta2 == values_in_force(given)["optimizer"]["beta2"] == 2**-0.1


class TestDecayTimesSteps:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        ("steps", "expected"), [(100_000, 1e-4), (4000, 2.5e-3), (400, 0.025), (100, 0.1), (99, 0.1), (1, 0.1)]
    )
    def test_lambda_follows_the_length_of_the_run(self, name: str, steps: int, expected: float) -> None:
        found = optimizer(name, decay_times_steps=10).in_force(steps, 512)
        assert found.weight_decay == found.decay_rate() == expected
        assert found.decay_at_peak(ParameterGroup([], "vector")) == expected

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"decay": "coupled"}, 0.1),
            ({"decay": "coupled", "weight_decay": 0.3}, 0.3),
            ({"decay": "none"}, 0.0),
            ({"weight_decay": 0.03}, 0.03),
            ({"weight_decay": 0.0}, 0.0),
            ({"decay_times_steps": None}, 1e-4),
            ({"decay_times_steps": 0}, 0.0),
        ],
    )
    def test_only_for_independent_decay_without_a_lambda_of_its_own(
        self, given: dict[str, Any], expected: float
    ) -> None:
        config = optimizer("adamw", **{"decay_times_steps": 10, **given})
        assert config.in_force(4000, 512).weight_decay == expected
        assert replace(config.in_force(4000, 512), weight_decay=config.weight_decay) == config

    def test_reaches_the_weights_and_the_record(self) -> None:
        """At zero gradients, the first step at the peak shrinks all weights by 2 / 50."""
        given = ["optimizer.decay_times_steps=2", "steps=50", "schedule.warmup_steps=0"]
        config = tiny(*given)
        proxy = ProxyModule(config)
        made: Any = proxy.configure_optimizers()
        before = [p.detach().clone() for p in proxy.parameters()]
        for p in proxy.parameters():
            p.grad = torch.zeros_like(p)
        made.step()
        for old, new in zip(before, proxy.parameters(), strict=True):
            torch.testing.assert_close(new.detach(), (1 - 2 / 50) * old)
        assert values_in_force(config)["optimizer"]["weight_decay"] == 0.04
        assert config.values()["optimizer"]["weight_decay"] is None
        assert {row[7] for row in rows(config)} == {"0.04"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_lr_of_a_group(name: str, kind: Kind) -> None:
    """An LR factor of 1/4 on the group equals a quarter of the config's LR."""
    start, gradients = randn(4, 6), [randn(4, 6, seed=i) for i in (1, 2, 3)]
    lr = optimizer(name).lr
    by_group = updated(optimizer(name, decay="none"), start, gradients, kind=kind, scaling=TensorScaling(lr=0.25))
    assert torch.equal(by_group, updated(optimizer(name, lr=0.25 * lr, decay="none"), start, gradients, kind=kind))
    assert not torch.equal(by_group, updated(optimizer(name, decay="none"), start, gradients, kind=kind))


@pytest.mark.parametrize("name", WITH_EPSILON)
def test_the_epsilon_of_a_group(name: str) -> None:
    start, gradients = randn(4, 6), [1e-3 * randn(4, 6, seed=i) for i in (1, 2, 3)]
    by_group = updated(optimizer(name, eps=1e-3), start, gradients, kind="vector", scaling=TensorScaling(eps=4.0))
    assert torch.equal(by_group, updated(optimizer(name, eps=4e-3), start, gradients, kind="vector"))
    assert not torch.equal(by_group, updated(optimizer(name, eps=1e-3), start, gradients, kind="vector"))


def test_what_a_loss_learns_follows_the_factor_of_vectors() -> None:
    proxy = ProxyModule(tiny("loss=tempnet", "optimizer.groups.vector=0.25", "parametrization=parameter_rms"))
    made: Any = proxy.configure_optimizers()
    learned = {id(p) for p in proxy.objective.parameters()}
    (group,) = (g for g in made.param_groups if learned & {id(p) for p in g["params"]})
    assert group["lr_scale"] == 0.25
    assert proxy._relative.indices == [*range(len(proxy.tensors))]


def test_which_have_an_epsilon() -> None:
    """Signs and orthogonalized momenta have no epsilon, so there is no probe of gradient / epsilon for them."""
    assert set(NAMES) - set(WITH_EPSILON) == {"lion"}
    matrix = [torch.nn.Parameter(randn(2, 2))]
    for name in ("muon", "normuon", "muonh"):
        assert optimizer(name).epsilon(ParameterGroup(matrix, "hidden")) is None
    assert optimizer("muon").epsilon(ParameterGroup(matrix, "head", TensorScaling(eps=0.5))) == 5e-9
    assert optimizer("adafactor").epsilon(ParameterGroup(matrix)) == torch.finfo(torch.float32).eps


def output_moved(name: str, width: int) -> float:
    """Returns the RMS of what six steps at LR 64 / width add to a matrix's output, for gradients of full rank.

    Half of inputs and of upstream gradients, whose elements fall as 1 / width, lie along 8 fixed directions."""
    config, samples, generator = optimizer(name, decay="none"), 1024, torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    weight = torch.nn.Parameter(draw(width, width) / width**0.5)
    start, factor = weight.detach().clone(), 64 / width
    made = config.build([ParameterGroup([weight], "hidden", TensorScaling(lr=factor, eps=factor))])
    of_input, of_gradient, between = draw(8, width), draw(8, width), draw(8, 8)
    for _ in range(6):
        z_N8 = draw(samples, 8)
        x_ND = z_N8 @ of_input / 8**0.5 + draw(samples, width)
        upstream_ND = (torch.tanh(z_N8 @ between) @ of_gradient / 8**0.5 + draw(samples, width)) / width
        weight.grad = upstream_ND.T @ x_ND / samples
        for group in made.param_groups:
            group["lr"] = config.lr * group["lr_scale"]
        made.step()
    x_ND = draw(samples, 8) @ of_input / 8**0.5 + draw(samples, width)
    return float((x_ND @ (weight.detach() - start).T).square().mean().sqrt())


@pytest.mark.parametrize("name", NAMES)
def test_which_updates_scale_with_width_as_adam_s(name: str) -> None:
    """With LRs over the width Adam's outputs move equally at any; those of orthogonal or normalized updates less."""
    ratio = output_moved(name, 256) / output_moved(name, 64)
    assert optimizer(name).width_as_adam == (ratio > 0.75), f"{ratio:.2f}"


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_one_group_with_its_multiplier(name: str) -> None:
    parameters = [torch.nn.Parameter(randn(*shape)) for shape in ((4, 6), (6, 4), (9, 6), (6,), ())]
    groups = [
        ParameterGroup(parameters[:2], "hidden", TensorScaling(lr=0.5)),
        ParameterGroup(parameters[2:3], "embedding"),
        ParameterGroup(parameters[3:]),
    ]  # fmt: skip
    made = optimizer(name).build(groups)
    assert sorted(id(p) for g in made.param_groups for p in g["params"]) == sorted(map(id, parameters))
    assert all(g["lr"] == optimizer(name).lr * g["lr_scale"] for g in made.param_groups)
    for _ in range(3):
        for p in parameters:
            p.grad = torch.ones_like(p)
        made.step()
    assert all(p.isfinite().all() for p in parameters)


@pytest.mark.parametrize("name", NAMES)
def test_a_tensor_without_a_gradient_is_left_alone(name: str) -> None:
    used, unused = (torch.nn.Parameter(randn(3, 3)) for _ in range(2))
    made = optimizer(name).build([ParameterGroup([used, unused], "hidden")])
    for _ in range(3):
        used.grad = randn(3, 3, seed=1)
        made.step()
    assert torch.equal(unused.detach(), randn(3, 3))
    assert not torch.equal(used.detach(), randn(3, 3))


def test_metrics_of_muon(tmp_path: Path) -> None:
    """Updates are divided by each tensor's own LR; only AdamW's tensors have gradient_over_eps."""
    row = trained(tmp_path, "optimizer=muon", "optimizer.adam_lr=0.1", "steps=2").metrics()[1]
    # A LayerNorm gain has a gradient in every channel.
    assert row["update/final_norm/rms"] == pytest.approx(1, abs=0.1)
    # 0.2 times roughly the mean singular value. Decay adds only 1e-4 / lr.
    assert row["update/block0/mlp.up/rms"] == pytest.approx(0.2, rel=0.3)
    over = [name for name in row if name.endswith("/gradient_over_eps")]
    assert "adam/head/gradient_over_eps" in over
    assert not any("mlp" in name or "attention" in name for name in over if "norm" not in name)


def test_metrics_of_lion(tmp_path: Path) -> None:
    row = trained(tmp_path, "optimizer=lion", "optimizer.decay=none", "steps=2").metrics()[1]
    assert row["update/block0/mlp.up/rms"] == pytest.approx(1, abs=1e-3)
    assert not any("over_eps" in name for name in row)


def test_schedule_free_keeps_its_mean(tmp_path: Path) -> None:
    """The final loss is that of weights.pt, and extra validations change neither weights nor training losses."""
    given = ["optimizer=schedule_free", "schedule=constant", "steps=20"]
    run, often = trained(tmp_path / "a", *given), trained(tmp_path / "b", *given, "eval_every=3")
    weights = [torch.load(r.path / "weights.pt", weights_only=True) for r in (run, often)]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert [r["train/loss"] for r in run.metrics()[1:]] == [r["train/loss"] for r in often.metrics()[1:]]
    config = tiny(*given)
    proxy = ProxyModule(config)
    proxy.model.load_state_dict(weights[0])
    batches = Job(config, run, prepare(config.data, Path(config.cache).expanduser()), lambda row: None, ()).validation
    losses = [
        float(proxy.objective.cross_entropy(proxy.model(b[:, :-1])[0].flatten(0, 1), b[:, 1:].flatten()))
        for b in batches
    ]
    assert sum(losses) / len(losses) == pytest.approx(run.summary()["validation/loss_final"], rel=1e-5)
