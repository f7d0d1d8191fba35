"""One update after another against the equations, in float64."""

from typing import Any

import pytest
import torch
from torch import nn

from conf.axis import ConfigError
from models.parametrization import Group
from tests.conftest import choice, randn, tiny
from train.optimizers import OPTIMIZER, AdamW
from train.schedules import SCHEDULE

GRADIENTS = [0.5, -0.2]


def adamw(**changes: Any) -> AdamW:
    made = choice(OPTIMIZER, "adamw", **changes)
    assert isinstance(made, AdamW)
    return made


def updated(config: AdamW, start: torch.Tensor, gradients: list[torch.Tensor], factors: list[float]) -> torch.Tensor:
    """Parameters after one step for each gradient, the LR set as the training loop sets it: peak times factor."""
    parameter = nn.Parameter(start.clone())
    optimizer = config.build([Group([parameter])])
    for gradient, factor in zip(gradients, factors, strict=True):
        parameter.grad = gradient.clone()
        for group in optimizer.param_groups:
            group["lr"] = config.lr * factor
        optimizer.step()
    return parameter.detach()


def equations(config: AdamW, start: torch.Tensor, gradients: list[torch.Tensor], factors: list[float]) -> torch.Tensor:
    """Wortsman et al. 2023, 3.2.2, with the decay's sign as it must be."""
    theta, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    rate = config.decay_rate()
    for t, (gradient, s) in enumerate(zip(gradients, factors, strict=True), start=1):
        m = config.beta1 * m + (1 - config.beta1) * gradient
        v = config.beta2 * v + (1 - config.beta2) * gradient**2
        delta = (m / (1 - config.beta1**t)) / ((v / (1 - config.beta2**t)).sqrt() + config.eps)
        decay = {"independent": rate, "coupled": config.lr * rate, "none": 0.0}[config.decay]
        theta = theta - s * (config.lr * delta + decay * theta)
    return theta


def scalars(values: list[float]) -> list[torch.Tensor]:
    return [torch.tensor([v], dtype=torch.float64) for v in values]


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
    """From 1, lr 0.1, betas 0.9 and 0.95, gradients 0.5 and -0.2, at a constant LR."""
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
    """Without gradients the decay is all there is."""

    @staticmethod
    def shrunk(factor: float = 1.0, **changes: Any) -> float:
        (start,) = scalars([1.0])
        return float(updated(adamw(**changes), start, scalars([0.0]), [factor]))

    @pytest.mark.parametrize("lr", [3e-4, 1e-2, 3e-1])
    def test_independent_does_not_follow_the_peak_lr(self, lr: float) -> None:
        assert 1 - self.shrunk(lr=lr) == pytest.approx(1e-4, rel=1e-9)

    @pytest.mark.parametrize("lr", [3e-4, 1e-2, 3e-1])
    def test_coupled_does(self, lr: float) -> None:
        assert 1 - self.shrunk(lr=lr, decay="coupled") == pytest.approx(0.1 * lr, rel=1e-9)

    @pytest.mark.parametrize("decay", ["independent", "coupled"])
    @pytest.mark.parametrize("factor", [0.0, 0.001, 0.5])
    def test_both_follow_the_schedule(self, decay: str, factor: float) -> None:
        full, part = 1 - self.shrunk(decay=decay), 1 - self.shrunk(factor, decay=decay)
        assert part == pytest.approx(factor * full, rel=1e-9, abs=1e-16)

    def test_none_does_not_decay(self) -> None:
        assert self.shrunk(decay="none") == 1.0

    def test_the_paper_s_values_are_equal_at_a_peak_of_1e_3(self) -> None:
        """1e-4 independent, 0.1 coupled: equal where 0.1 lr = 1e-4."""
        assert adamw().decay_rate() == 1e-4
        assert adamw(decay="coupled").decay_rate() == 0.1
        assert adamw(decay="none").decay_rate() == 0.0
        assert self.shrunk(lr=1e-3) == pytest.approx(self.shrunk(lr=1e-3, decay="coupled"), rel=1e-12)

    @pytest.mark.parametrize("decay", ["independent", "coupled"])
    def test_zero_is_not_the_default(self, decay: str) -> None:
        assert self.shrunk(decay=decay, weight_decay=0.0) == 1.0

    def test_every_parameter_is_decayed(self) -> None:
        """NanoDO excludes none: norms and embeddings too."""
        model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.LayerNorm(3, bias=False), nn.Embedding(4, 3)])
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = adamw(weight_decay=0.1).build([Group(list(model.parameters()))])
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        for old, new in zip(before, model.parameters(), strict=True):
            torch.testing.assert_close(new.detach(), 0.9 * old)


class TestEpsilon:
    def test_is_outside_the_root(self) -> None:
        """The first Delta is g / (|g| + eps): half of its size where the gradient is eps."""
        (start,) = scalars([0.0])
        for gradient, eps, expected in ((1e-8, 1e-8, 0.5), (1.0, 1e-8, 1.0), (1e-8, 1e-15, 1.0), (1e-8, 1e-6, 0.0099)):
            config = adamw(lr=0.1, eps=eps, decay="none")
            found = float(updated(config, start, scalars([gradient]), [1.0]))
            assert found == pytest.approx(-0.1 * expected, rel=1e-3)

    def test_gradients_far_below_it_do_not_vanish_in_fp32(self) -> None:
        """g^2 of 1e-15 is 1e-30, still a number in fp32; with eps 1e-15 such gradients move the weights."""
        config = adamw(lr=0.1, eps=1e-15, decay="none")
        found = updated(config, torch.zeros(1), [torch.tensor([1e-14])], [1.0])
        assert float(found) == pytest.approx(-0.1 / 1.1, rel=1e-3)

    def test_is_known_to_the_probes(self) -> None:
        assert adamw(eps=1e-6).epsilon() == 1e-6


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
