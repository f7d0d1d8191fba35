from typing import Any

import pytest
import torch
from torch import nn

from conf.axis import ConfigError
from models.gpt import GPT, initialize
from models.init import INIT
from models.norms import NORM
from tests.conftest import choice, randn, tiny


def drawn(name: str, dim: int, **changes: Any) -> nn.Module:
    """A norm whose parameters are all moved off their start."""
    norm = choice(NORM, name, **changes).build(dim)
    for index, parameter in enumerate(norm.parameters()):
        parameter.data = (parameter.dim() == 1) + 0.3 * randn(*parameter.shape, seed=index)
    return norm


# Those that divide by a statistic of their input and have no other parameter than a weight.
NAMES = ["layernorm", "rmsnorm"]


@pytest.mark.parametrize(
    ("name", "eps", "expected"),
    [
        ("layernorm", 1e-5, [-1.341635, -0.447212, 0.447212, 1.341635]),  # torch.nn.LayerNorm's default eps
        ("rmsnorm", 1e-6, [0.365148, 0.730297, 1.095445, 1.460593]),
    ],
)
def test_vector(name: str, eps: float, expected: list[float]) -> None:
    found = choice(NORM, name, eps=eps).build(4)(torch.tensor([1.0, 2, 3, 4]))
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("eps", [1e-6, 0.5, 3.0])
def test_equations(eps: float) -> None:
    x, weight = randn(5, 16, dtype=torch.float64) + 1, randn(16, seed=1)
    mean, centred = x.mean(-1, keepdim=True), x - x.mean(-1, keepdim=True)
    expected = {
        "layernorm": centred / ((x - mean).square().mean(-1, keepdim=True) + eps).sqrt() * weight,
        "rmsnorm": x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight,
    }
    assert sorted(expected) == NAMES
    for name in NAMES:
        norm = choice(NORM, name, eps=eps).build(16)
        norm.weight.data = weight
        torch.testing.assert_close(norm(x.float()), expected[name].float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_default_eps_is_flax_s(name: str) -> None:
    assert choice(NORM, name).build(4).eps == 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_one_weight_a_feature_that_starts_at_one_and_no_bias(name: str) -> None:
    """ "We never use biases": Wortsman et al. 2023, Fig. E.8."""
    (weight,) = choice(NORM, name).build(7).parameters()
    assert torch.equal(weight.detach(), torch.ones(7))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("autocast", [False, True])
def test_statistics_are_fp32_for_bf16_inputs(name: str, autocast: bool) -> None:
    """A mean of 100 leaves bf16, with its 8 bits, next to nothing of a variance of 1."""
    norm = choice(NORM, name).build(64)
    x = (randn(5, 64) + 100).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = norm(x)
    assert found.dtype == torch.float32
    x = x.double()
    if name == "layernorm":
        x = x - x.mean(-1, keepdim=True)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*NAMES, "preaffine", "gated"])
@pytest.mark.parametrize("scale", [1e-1, 1e4])
def test_scale_of_the_input_does_not_matter(name: str, scale: float) -> None:
    norm, x = drawn(name, 32), randn(5, 32)
    torch.testing.assert_close(norm(scale * x), norm(x), atol=5e-4, rtol=0)


@pytest.mark.parametrize("name", [*NAMES, "preaffine", "gated"])
def test_zeros_and_huge_inputs_pass_forward_and_backward(name: str) -> None:
    norm = drawn(name, 8)
    for x in (torch.zeros(2, 8), 1e15 * randn(2, 8)):
        x = x.requires_grad_()
        y = norm(x)
        y.square().sum().backward()
        assert y.isfinite().all()
        assert x.grad is not None
        assert x.grad.isfinite().all()


class TestDynamicTanh:
    def test_vector(self) -> None:
        """weight * tanh(x / 2) + bias at weight 1 and bias 0. Zhu et al. 2025, algorithm 1."""
        found = choice(NORM, "dyt").build(4)(torch.tensor([1.0, 2, 3, 4]))
        torch.testing.assert_close(found, torch.tensor([0.462117, 0.761594, 0.905148, 0.964028]), atol=1e-6, rtol=0)

    def test_equation(self) -> None:
        norm, x = choice(NORM, "dyt", alpha=0.7).build(16), randn(5, 16)
        norm.weight.data, norm.bias.data = randn(16, seed=1), randn(16, seed=2)
        expected = norm.weight * (0.7 * x).tanh() + norm.bias
        torch.testing.assert_close(norm(x), expected, atol=1e-6, rtol=1e-6)

    def test_parameters(self) -> None:
        """One alpha a layer, a weight and a bias a feature."""
        parameters = dict(choice(NORM, "dyt").build(7).named_parameters())
        assert {n: p.shape for n, p in parameters.items()} == {"alpha": (1,), "weight": (7,), "bias": (7,)}

    def test_scale_of_the_input_matters(self) -> None:
        norm, x = choice(NORM, "dyt").build(32), randn(5, 32)
        assert (norm(2 * x) - norm(x)).abs().max() > 0.1
        assert norm(1e6 * x).abs().max() <= 1


class TestPreAffine:
    """Qiu et al. 2026, section 3.3."""

    def test_vector(self) -> None:
        norm: Any = choice(NORM, "preaffine").build(4)
        norm.scale.data = torch.tensor([1.0, 0.5, 2, 0])
        expected = torch.tensor([1.664100, -1.109400, 0, 0])
        torch.testing.assert_close(norm(torch.tensor([3.0, -4, 0, 5])), expected, atol=1e-6, rtol=0)

    def test_equation(self) -> None:
        norm: Any = drawn("preaffine", 16, eps=0.5)
        x = randn(5, 16, seed=9)
        scaled = norm.scale * x
        expected = scaled / (scaled.square().mean(-1, keepdim=True) + 0.5).sqrt() * norm.weight
        torch.testing.assert_close(norm(x), expected, atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize("common", [1.0, 7.0])
    def test_one_factor_for_all_channels_is_rmsnorm(self, common: float) -> None:
        norm: Any = choice(NORM, "preaffine").build(16)
        assert torch.equal(norm.scale.detach(), torch.ones(16))
        norm.scale.data *= common
        x = randn(5, 16)
        torch.testing.assert_close(norm(x), choice(NORM, "rmsnorm").build(16)(x), atol=1e-5, rtol=1e-5)

    def test_a_large_channel_scales_the_others_down(self) -> None:
        norm: Any = choice(NORM, "preaffine").build(16)
        x = randn(5, 16)
        before = norm(x)
        norm.scale.data[3] = 100
        assert bool((norm(x).abs() < before.abs())[:, [0, 1, 2, *range(4, 16)]].all())


class TestGatedNorm:
    """Qiu et al. 2026, section 3.4."""

    def test_vector(self) -> None:
        norm: Any = choice(NORM, "gated", rank=1).build(4)
        norm.squeeze.weight.data = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
        norm.expand.weight.data = torch.tensor([[1.0], [-1], [0], [2]])
        expected = torch.tensor([0.478373, -0.493540, 0, 0.884583])
        torch.testing.assert_close(norm(torch.tensor([3.0, -4, 0, 5])), expected, atol=1e-6, rtol=0)

    def test_equation(self) -> None:
        norm: Any = drawn("gated", 8, eps=0.5, rank=3)
        x = randn(5, 8, seed=9)
        y = x / (x.square().mean(-1, keepdim=True) + 0.5).sqrt() * norm.weight
        h = y @ norm.squeeze.weight.T
        gate = 1 / (1 + (-(h / (1 + (-h).exp())) @ norm.expand.weight.T).exp())
        torch.testing.assert_close(norm(x), y * gate, atol=1e-6, rtol=1e-5)

    def test_a_closed_gate_halves_rmsnorm(self) -> None:
        norm: Any = choice(NORM, "gated").build(16)
        norm.expand.weight.data.zero_()
        x = randn(5, 16)
        torch.testing.assert_close(norm(x), choice(NORM, "rmsnorm").build(16)(x) / 2)

    def test_parameters(self) -> None:
        parameters = dict(choice(NORM, "gated", rank=3).build(7).named_parameters())
        assert {n: tuple(p.shape) for n, p in parameters.items()} == {
            "weight": (7,), "squeeze.weight": (3, 7), "expand.weight": (7, 3),
        }  # fmt: skip

    def test_is_fp32_and_close_under_autocast(self) -> None:
        norm, x = drawn("gated", 64), randn(5, 64)
        with torch.autocast("cpu", torch.bfloat16):
            found = norm(x.bfloat16())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, norm(x.bfloat16()), atol=0.05, rtol=0.05)

    @pytest.mark.parametrize("init", sorted(INIT.choices))
    def test_the_seed_decides_its_matrices(self, init: str) -> None:
        weights = []
        for seed, state in ((3, 0), (3, 1), (4, 0)):
            torch.manual_seed(state)
            config = tiny("norm=gated", f"init={init}")
            model = GPT(config, vocab_size=32, context=8)
            initialize(model, config, seed)
            weights.append(
                torch.cat([p.flatten() for n, p in model.named_parameters() if "squeeze" in n or "expand" in n])
            )
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    @pytest.mark.parametrize("placement", ["deepnorm", "sub_ln"])
    def test_scaled_inits_leave_the_gate_alone(self, placement: str) -> None:
        models = []
        for name in (placement, "pre"):
            config = tiny("norm=gated", f"placement={name}", "model.depth=2", "init=normal")
            model = GPT(config, vocab_size=32, context=8)
            initialize(model, config, 0)
            models.append(dict(model.named_parameters()))
        gates = [n for n in models[0] if n.endswith(("squeeze.weight", "expand.weight"))]
        assert gates
        assert all(models[0][n].std().item() == pytest.approx(0.02, rel=0.3) for n in gates)

    @pytest.mark.parametrize("name", ["mup_simple", "mup_full"])
    def test_widths_of_a_parametrization_are_not_its_own(self, name: str) -> None:
        with pytest.raises(ConfigError) as error:
            tiny("norm=gated", f"parametrization={name}")
        assert str(error.value) == (
            f"norm=gated has matrices whose fan-in does not follow the width, but parametrization={name} "
            f"assumes it: use parametrization=standard or norm=layernorm"
        )


def test_which_norms_do_not_feel_the_scale_of_their_input() -> None:
    assert {name for name, config in NORM.choices.items() if config.scale_invariant} == {
        *NAMES, "preaffine", "gated", "srms",
    }  # fmt: skip


def test_srms_is_rmsnorm_without_parameters() -> None:
    norm = choice(NORM, "srms").build(2)
    assert list(norm.parameters()) == []
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), torch.tensor([0.848528, 1.131371]))


@pytest.mark.parametrize("name", ["dyt", "none"])
def test_the_others_are_fp32_too(name: str) -> None:
    x = randn(3, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = choice(NORM, name).build(8)(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, x.float() if name == "none" else (x.float() / 2).tanh())


def test_none_has_no_parameters_and_changes_nothing() -> None:
    norm, x = choice(NORM, "none").build(8), randn(3, 8)
    assert list(norm.parameters()) == []
    assert norm(x) is x
