"""What choices declare of themselves, against what they do."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from conf.axis import ConfigError, axes
from models.architecture import Architecture
from models.attention.mixing.base import ATTENTION
from models.attention.qk_norm import QK_NORM
from models.layers import Linear
from models.placement.base import PLACEMENT, PlacementConfig
from tests.conftest import complete, tiny
from tests.models.attention.mixing.helpers import own_tests
from train.config.schema import Config
from train.run.module import ProxyModule

ZERO = ("parametrization=mup_full", "optimizer.decay=none", "model.depth=2")
FEW = ("softmax", "softpick", "tropical", "mamba", "sd_ssm", "short_conv")
"""Rules of the default suite's test of 20 steps: of each kind, those that start at zero, and those refused there."""
RULES = sorted(name for name, rule in ATTENTION.choices.items() if rule.has_weights)


def moved(config: Config, steps: int = 3) -> dict[str, bool]:
    """Whether the optimizer has changed each matrix, by its name without `.weight`; decay is to be none."""
    module = ProxyModule(config)
    optimizer: Any = module.configure_optimizers()
    matrices = {n.removesuffix(".weight"): p for n, p in module.model.named_parameters() if p.dim() > 1}
    before = {name: weight.detach().clone() for name, weight in matrices.items()}
    for step in range(steps):
        tokens = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        module.step_loss(tokens, step).backward()
        module.clip(step)
        module.update(optimizer, step)
    return {name: not torch.equal(weight, before[name]) for name, weight in matrices.items()}


def of_architecture() -> Iterator[str]:
    """Every choice of an axis of the model but the one that is varied."""
    for axis, registry in axes(Architecture).items():
        if axis not in ("attention", "parametrization"):
            yield from (f"{axis}={name}" for name in registry.choices)


def gradient_norm(config: Config) -> float:
    """The norm of the gradient at initialisation, on one batch of random tokens."""
    module = ProxyModule(config)
    tokens = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(0))
    module.step_loss(tokens, 0).backward()
    return float(torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm())


class TestZeroInit:
    """Queries start at zero with parametrization=mup_full."""

    @pytest.mark.parametrize(
        "rule", [n for n in RULES if ATTENTION.choices[n].zero_init_safe and not ATTENTION.choices[n].steep_at_zero]
    )
    def test_every_matrix_moves(self, rule: str) -> None:
        found = moved(tiny(*ZERO, f"attention={rule}", *getattr(own_tests(rule), "MUP", ())))
        assert all(found.values()), found

    @pytest.mark.parametrize(
        "rule", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in sorted(ATTENTION.choices)]
    )
    def test_every_matrix_has_moved_after_20_steps(self, rule: str) -> None:
        """Also in mixers, and where queries that start at zero are refused, from their other start."""
        given = (*ZERO[1:], f"attention={rule}", *getattr(own_tests(rule), "MUP", ()))
        try:
            config = tiny(ZERO[0], *given)
        except ConfigError as error:
            assert "parametrization=mup_full" in str(error)  # noqa: PT017
            config = tiny(*given)
        found = moved(config, 20)
        assert all(found.values()), found

    @pytest.mark.parametrize("rule", [name for name in RULES if not ATTENTION.choices[name].zero_init_safe])
    def test_a_rule_without_a_gradient_is_refused(self, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigError) as error:
            tiny(*ZERO, f"attention={rule}")
        assert str(error.value) == (
            f"parametrization=mup_full starts queries at zero, where attention={rule} gives them no gradient: "
            f"use parametrization=mup_simple or attention=softmax"
        )
        monkeypatch.setattr(ATTENTION.choices[rule], "zero_init_safe", True)
        found = moved(tiny.__wrapped__(*ZERO, f"attention={rule}"))
        assert {name for name, yes in found.items() if name.endswith("query")} == {
            f"blocks.{block}.attention.query" for block in (0, 1)
        }
        assert not any(yes for name, yes in found.items() if name.endswith("query"))

    @pytest.mark.parametrize("given", ["attention=nap", "attention=lssa", "attention=lssar", "attention=sa_softmax",
                                       "qk_norm=fixed"])  # fmt: skip
    def test_a_slope_without_bound_is_refused(self, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Such gradients would be clipped until nothing else moves."""
        axis, _, name = given.partition("=")
        with pytest.raises(ConfigError, match=f"starts queries at zero, where {given} has a slope"):
            tiny(*ZERO, given)
        monkeypatch.setattr({"attention": ATTENTION, "qk_norm": QK_NORM}[axis].choices[name], "steep_at_zero", False)
        plain, steep = (gradient_norm(tiny.__wrapped__(*ZERO, *more)) for more in ((), (given,)))
        assert steep > 1e4 * plain

    @pytest.mark.parametrize("given", list(of_architecture()))
    def test_the_other_axes_let_every_matrix_move(self, given: str) -> None:
        try:
            config = tiny(*ZERO, *complete(given))
        except ConfigError as error:
            assert "parametrization=mup_full" in str(error)  # noqa: PT017
            return
        found = moved(config)
        assert all(found.values()), found


FORMS = {"gate=qualcomm": [[f"gate.form={form}"] for form in ("linear", "mlp", "all_features")]}


@pytest.mark.parametrize(
    "given",
    [f"{axis}={n}" for axis in ("attention", "layout", "gate", "norm", "mlp") for n in axes(Config)[axis].choices],
)
def test_fan_ins_follow_the_width_where_they_are_said_to(given: str) -> None:
    """From width 80 to 160 at one head dimension: all fan-ins double, but for rounding."""
    axis = given.partition("=")[0]
    for form in FORMS.get(given, [[]]):
        fan_ins, said = [], []
        for width, heads in ((80, 4), (160, 8)):
            config = tiny(*complete(given, *form), f"model.width={width}", f"model.heads={heads}")
            model = ProxyModule(config).model
            fan_ins.append({n: m.in_features for n, m in model.named_modules() if isinstance(m, Linear)})
            said.append(getattr(config, axis).fan_in_follows_width)
        ratios = [fan_ins[1][name] / fan_in for name, fan_in in fan_ins[0].items()]
        assert said[0] == said[1] == all(ratio == pytest.approx(2, rel=0.05) for ratio in ratios)


@pytest.mark.parametrize(
    ("overrides", "setting", "instead"),
    [
        (["gate=qualcomm"], "gate=qualcomm", "gate=none"),
        (["gate=qualcomm", "gate.form=mlp"], "gate=qualcomm", "gate=none"),
        (["norm=gated"], "norm=gated", "norm=layernorm"),
    ],
)
def test_a_fan_in_that_does_not_follow_the_width_clashes_with_factors_of_it(
    overrides: list[str], setting: str, instead: str
) -> None:
    with pytest.raises(ConfigError) as error:
        tiny("parametrization=mup", *overrides)
    assert str(error.value) == (
        f"{setting} has matrices whose fan-in does not follow the width, but parametrization=mup assumes it: "
        f"use parametrization=standard or {instead}"
    )
    assert tiny("parametrization=parameter_rms", *overrides)
    assert tiny("parametrization=mup", "gate=qualcomm", "gate.form=all_features")


@pytest.mark.parametrize("name", PLACEMENT.choices)
def test_placements_declare_what_they_override(name: str) -> None:
    placement = PLACEMENT.choices[name]

    def own(*methods: str) -> bool:
        return any(getattr(placement, method) is not getattr(PlacementConfig, method) for method in methods)

    assert placement.wraps_projections == own("projection", "after_positions")
    assert placement.sets_initial_scale == own("rescale")
    assert placement.sets_weights_each_step == own("constrain")
