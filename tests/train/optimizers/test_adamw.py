"""AdamW against its equations, in float64; update clip, cautious mask and orthogonal gradients."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from conf.axis import ConfigError
from models.parametrization import ParameterGroup, TensorScaling
from tests.conftest import choice, randn, tiny
from tests.train.optimizers.steps import optimizer, scalars, trace, updated
from train.optimizers.adamw import AdamW, LeanAdamW
from train.optimizers.schedules import SCHEDULE

GRADIENTS = [0.5, -0.2]


def adamw(**changes: Any) -> AdamW:
    made = optimizer("adamw", **changes)
    assert isinstance(made, AdamW)
    return made


def equations(config: AdamW, start: torch.Tensor, gradients: list[torch.Tensor], factors: list[float]) -> torch.Tensor:
    """Returns the parameter after all steps, by Wortsman et al. 2023, 3.2.2, with the sign of the decay corrected."""
    theta, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    rate = config.decay_rate()
    for t, (gradient, s) in enumerate(zip(gradients, factors, strict=True), start=1):
        m = config.beta1 * m + (1 - config.beta1) * gradient
        v = config.beta2 * v + (1 - config.beta2) * gradient**2
        delta = (m / (1 - config.beta1**t)) / ((v / (1 - config.beta2**t)).sqrt() + config.eps)
        decay = {"independent": rate, "coupled": config.lr * rate, "none": 0.0}[config.decay]
        theta = theta - s * (config.lr * delta + decay * theta)
    return theta


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # torch.optim.AdamW(lr=0.1, weight_decay=0.1) gives the same two numbers.
        ({"decay": "coupled", "weight_decay": 0.1}, [0.890000002, 0.846220345]),
        ({"decay": "independent", "weight_decay": 0.01}, [0.890000002, 0.846220345]),
        ({"decay": "none"}, [0.900000002, 0.865120345]),
    ],
)
def test_vector(changes: dict[str, Any], expected: list[float]) -> None:
    """Starts at 1; constant LR 0.1, betas 0.9 and 0.95, gradients 0.5 and -0.2."""
    config = adamw(lr=0.1, eps=1e-8, **changes)
    (start,) = scalars([1.0])
    found = [float(updated(config, start, scalars(GRADIENTS[:n]), [1.0] * n)) for n in (1, 2)]
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"decay": "coupled"},
        {"decay": "none"},
        {"weight_decay": 0.3},
        {"decay": "coupled", "weight_decay": 3.0},
        {"lr": 0.3},
        {"beta1": 0.5},
        {"beta1": 0.0},
        {"beta2": 0.5},
        {"beta2": 0.999},
        {"eps": 1e-15},
        {"eps": 1.0},
    ],
    ids=str,
)
def test_equations_under_a_schedule(changes: dict[str, Any]) -> None:
    config = adamw(**changes)
    steps, schedule = 12, choice(SCHEDULE, "cosine", warmup_steps=3)
    factors = [schedule.factor(step, steps=steps, peak=config.lr) for step in range(steps)]
    start, gradients = randn(5, dtype=torch.float64), [randn(5, seed=i, dtype=torch.float64) for i in range(1, 13)]
    found = updated(config, start, gradients, factors)
    torch.testing.assert_close(found, equations(config, start, gradients, factors), atol=1e-12, rtol=1e-12)
    if changes:  # far above the tolerance, even for an eps of 1e-15 under gradients of size 1
        assert (found - updated(adamw(), start, gradients, factors)).abs().max() > 1e-10


class TestDecay:
    """With zero gradients, weights change by decay only."""

    @staticmethod
    def decayed(factor: float = 1.0, **changes: Any) -> float:
        """Returns what is left of a weight of 1 after one step."""
        (start,) = scalars([1.0])
        return float(updated(adamw(**changes), start, scalars([0.0]), [factor]))

    @pytest.mark.parametrize("lr", [3e-4, 1e-2, 3e-1])
    def test_independent_does_not_follow_the_peak_lr(self, lr: float) -> None:
        assert 1 - self.decayed(lr=lr) == pytest.approx(1e-4, rel=1e-9)

    @pytest.mark.parametrize("lr", [3e-4, 1e-2, 3e-1])
    def test_coupled_does(self, lr: float) -> None:
        assert 1 - self.decayed(lr=lr, decay="coupled") == pytest.approx(0.1 * lr, rel=1e-9)

    @pytest.mark.parametrize("decay", ["independent", "coupled"])
    @pytest.mark.parametrize("factor", [0.0, 0.001, 0.5])
    def test_both_follow_the_schedule(self, decay: str, factor: float) -> None:
        full, part = 1 - self.decayed(decay=decay), 1 - self.decayed(factor, decay=decay)
        assert part == pytest.approx(factor * full, rel=1e-9, abs=1e-16)

    def test_none_does_not_decay(self) -> None:
        assert self.decayed(decay="none") == 1.0

    def test_the_paper_s_values_are_equal_at_a_peak_of_1e_3(self) -> None:
        """1e-4 independent and 0.1 coupled decay equally when 0.1 lr = 1e-4."""
        assert adamw().decay_rate() == 1e-4
        assert adamw(decay="coupled").decay_rate() == 0.1
        assert adamw(decay="none").decay_rate() == 0.0
        assert self.decayed(lr=1e-3) == pytest.approx(self.decayed(lr=1e-3, decay="coupled"), rel=1e-12)

    @pytest.mark.parametrize("decay", ["independent", "coupled"])
    def test_zero_is_not_the_default(self, decay: str) -> None:
        assert self.decayed(decay=decay, weight_decay=0.0) == 1.0

    def test_every_parameter_is_decayed(self) -> None:
        """Norms and embeddings too, as in NanoDO."""
        model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.LayerNorm(3, bias=False), nn.Embedding(4, 3)])
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = adamw(weight_decay=0.1).build([ParameterGroup(list(model.parameters()))])
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        for old, new in zip(before, model.parameters(), strict=True):
            torch.testing.assert_close(new.detach(), 0.9 * old)


class TestEpsilon:
    def test_is_outside_the_root(self) -> None:
        """The first update is g / (|g| + eps), which is 1/2 for g = eps."""
        (start,) = scalars([0.0])
        for gradient, eps, expected in ((1e-8, 1e-8, 0.5), (1.0, 1e-8, 1.0), (1e-8, 1e-15, 1.0), (1e-8, 1e-6, 0.0099)):
            config = adamw(lr=0.1, eps=eps, decay="none")
            found = float(updated(config, start, scalars([gradient]), [1.0]))
            assert found == pytest.approx(-0.1 * expected, rel=1e-3)

    def test_gradients_far_below_it_do_not_vanish_in_fp32(self) -> None:
        """A gradient of 1e-14 has g^2 = 1e-28, which fp32 can represent, so with eps 1e-15 it moves the weights."""
        config = adamw(lr=0.1, eps=1e-15, decay="none")
        found = updated(config, torch.zeros(1), [torch.tensor([1e-14])], [1.0])
        assert float(found) == pytest.approx(-0.1 / 1.1, rel=1e-3)

    def test_is_known_to_the_probes(self) -> None:
        assert adamw(eps=1e-6).epsilon(ParameterGroup([], scaling=TensorScaling(eps=0.5))) == 5e-7


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("optimizer.eps=0", r"^optimizer\.eps=0: input should be greater than 0$"),  # 0/0 for rows without a gradient
        ("optimizer.beta1=1", r"^optimizer\.beta1=1: input should be less than 1$"),
        ("optimizer.beta2=-0.1", r"^optimizer\.beta2=-0\.1: input should be greater than or equal to 0$"),
        ("optimizer.clip=0", r"^optimizer\.clip=0: input should be greater than 0$"),
        ("optimizer.weight_decay=-1", r"^optimizer\.weight_decay=-1: input should be greater than or equal to 0$"),
        ("optimizer.decay=decoupled", r"^optimizer\.decay=decoupled: .*'independent', 'coupled' or 'none'$"),
    ],
)
def test_impossible_values_are_refused(override: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        tiny(override)


def test_a_decay_without_a_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weight_decay=0\.1 clashes with decay=none: choose independent or coupled"):
        tiny("optimizer.decay=none", "optimizer.weight_decay=0.1")
    assert adamw(decay="none", weight_decay=0.0).decay_rate() == 0.0


def test_defaults_are_the_paper_s() -> None:
    """Wortsman et al. 2023, section 2.1."""
    config = adamw()
    assert (config.beta1, config.beta2, config.eps, config.clip) == (0.9, 0.95, 1e-8, 1.0)
    assert config.decay == "independent"


class TestUpdateClip:
    """The update clip of Shazeer & Stern 2018, section 6, applied to AdamW."""

    GRADIENTS = [randn(4, 3, seed=i, dtype=torch.float64) for i in range(1, 9)]  # noqa: RUF012
    FACTORS = [0.3, 0.6, 1.0, 1.0, 0.8, 0.5, 0.2, 0.0]  # noqa: RUF012

    @pytest.mark.parametrize("decay", ["independent", "coupled", "none"])
    def test_a_bound_that_is_never_reached_is_adamw(self, decay: str) -> None:
        start = randn(4, 3, dtype=torch.float64)
        kernel = updated(adamw(decay=decay), start, self.GRADIENTS, self.FACTORS)
        ours = updated(adamw(decay=decay, update_clip=1e6), start, self.GRADIENTS, self.FACTORS)
        torch.testing.assert_close(ours, kernel, atol=1e-13, rtol=1e-12)

    def test_a_spike(self) -> None:
        """A large gradient after small ones gives u an RMS of (1 - beta1) / sqrt(1 - beta2).

        The clip reduces it to d and keeps the direction.
        """
        gradients = [0.01 * g for g in self.GRADIENTS] + [self.GRADIENTS[0]]
        start = torch.zeros(4, 3, dtype=torch.float64)
        free, cut = (trace(adamw(decay="none", update_clip=d), start, gradients) for d in (None, 0.2))
        assert float((free[-1] - free[-2]).square().mean().sqrt()) > 0.4e-2
        assert float((cut[-1] - cut[-2]).square().mean().sqrt()) == pytest.approx(0.2e-2, rel=1e-12)
        torch.testing.assert_close(
            torch.nn.functional.normalize((free[-1] - free[-2]).flatten(), dim=0),
            torch.nn.functional.normalize((cut[-1] - cut[-2]).flatten(), dim=0),
        )

    def test_each_tensor_has_its_own_rms(self) -> None:
        a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        made = adamw(decay="none", update_clip=0.5, eps=1.0).build([ParameterGroup([a, b])])
        a.grad, b.grad = torch.tensor([99.0, 99.0]), torch.tensor([0.25, 0.25])
        made.step()
        # u = g / (|g| + 1): 0.99 is cut to 0.5, 0.2 is left alone.
        torch.testing.assert_close(a.detach(), torch.full((2,), -0.5e-2))
        torch.testing.assert_close(b.detach(), torch.full((2,), -0.2e-2))


class TestCautious:
    """Liang et al. 2024: u phi / mean(phi), phi = 1 where u and g have the same sign."""

    def test_by_the_equation(self) -> None:
        start = torch.zeros(4, dtype=torch.float64)
        gradients = [
            torch.tensor([1.0, 1.0, -1.0, 2.0], dtype=torch.float64),
            torch.tensor([-0.1, 0.3, 0.1, -0.2], dtype=torch.float64),  # against the momentum in all but the second
        ]
        plain = trace(adamw(decay="none"), start, gradients)
        found = trace(optimizer("cautious_adamw", decay="none"), start, gradients)
        torch.testing.assert_close(found[0], plain[0], atol=1e-12, rtol=1e-12)  # all agree at the first step
        step = (plain[1] - plain[0]) * torch.tensor([0.0, 4.0, 0.0, 0.0], dtype=torch.float64)
        torch.testing.assert_close(found[1] - found[0], step, atol=1e-12, rtol=1e-9)

    def test_without_agreement_nothing_moves(self) -> None:
        gradients = scalars([1.0, -0.1])
        found = trace(optimizer("cautious_adamw", decay="none"), gradients[0] * 0, gradients)
        assert torch.equal(found[0], found[1])


class TestOrthoGrad:
    """Prieto et al. 2025: the gradient without its component along the weights, rescaled to its norm."""

    def test_gradient(self) -> None:
        weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        made = optimizer("orthograd", lr=1e-30).build([ParameterGroup([weight])])
        weight.grad = torch.tensor([3.0, 1.0])
        made.step()
        torch.testing.assert_close(weight.grad, torch.tensor([2.828427, -1.414214]))
        assert float(weight.grad @ weight.detach()) == pytest.approx(0, abs=1e-6)
        assert float(weight.grad.norm()) == pytest.approx(10**0.5)

    def test_gradient_of_cross_entropy(self) -> None:
        """At theta x, x = (1, 1), target 0."""
        weight = nn.Parameter(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        made = optimizer("orthograd", lr=1e-30).build([ParameterGroup([weight])])
        nn.functional.cross_entropy((weight @ torch.ones(2))[None], torch.tensor([0])).backward()
        made.step()
        expected = torch.tensor([[-0.165557, -0.275928], [0.275928, 0.331114]])
        torch.testing.assert_close(weight.grad, expected, atol=1e-6, rtol=0)

    def test_update_is_adamw_on_the_orthogonal_gradient(self) -> None:
        start = randn(3, 4, dtype=torch.float64)
        gradients = [randn(3, 4, seed=i, dtype=torch.float64) for i in (1, 2, 3)]
        weights, orthogonal = [start, *trace(optimizer("orthograd"), start, gradients)], []
        for w, g in zip(weights, gradients, strict=False):
            left = g - (w * g).sum() / (w * w).sum() * w
            orthogonal.append(left * g.norm() / left.norm())
        torch.testing.assert_close(weights[-1], updated(adamw(), start, orthogonal), atol=1e-12, rtol=1e-12)

    def test_a_gradient_along_the_weights_moves_nothing(self) -> None:
        start = randn(3, 4)
        assert torch.equal(updated(optimizer("orthograd", decay="none"), start, [3 * start]), start)

    def test_zero_weights_keep_their_gradient(self) -> None:
        start, gradient = torch.zeros(3), randn(3)
        torch.testing.assert_close(
            updated(optimizer("orthograd", decay="none"), start, [gradient]),
            updated(adamw(decay="none"), start, [gradient]),
        )


def test_one_count_of_steps_is_torchs_fused_adamw() -> None:
    """To the bit, in two groups of different settings, with a missing gradient and a reload on the way."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(5, 3, generator=generator) for _ in range(4)]

    def build(kind: type[torch.optim.AdamW], values: list[torch.Tensor]) -> torch.optim.AdamW:
        weights = [torch.nn.Parameter(value.clone()) for value in values]
        groups = [{"params": weights[:2], "weight_decay": 0.1}, {"params": weights[2:], "weight_decay": 0.0}]
        return kind(groups, lr=1e-2, betas=(0.9, 0.95), fused=True)

    def weights_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
        return [p for group in optimizer.param_groups for p in group["params"]]

    ours, theirs = build(LeanAdamW, start), build(torch.optim.AdamW, start)
    for step in range(12):
        gradients = [torch.randn(5, 3, generator=generator) for _ in start]
        for each in (ours, theirs):
            for index, (weight, gradient) in enumerate(zip(weights_of(each), gradients, strict=True)):
                weight.grad = None if (step, index) in ((5, 1), (9, 2)) else gradient.clone()
            each.step()
        both = zip(weights_of(ours), weights_of(theirs), strict=True)
        assert all(torch.equal(a, b) for a, b in both), step
        mine, expected = ours.state_dict()["state"], theirs.state_dict()["state"]
        assert all(torch.equal(mine[i][name], expected[i][name]) for i in expected for name in expected[i]), step
        if step in (2, 4):
            reloaded = build(LeanAdamW, [p.detach() for p in weights_of(ours)])
            reloaded.load_state_dict(copy.deepcopy(ours.state_dict()))
            ours = reloaded
