"""Every rule with a linear-time path against its explicit weights, at lengths that matter to chunks."""

import pytest
import torch

from models.attention.mixing.base import Inputs
from models.attention.mixing.linear import LinearAttention
from tests.conftest import randn
from tests.models.attention.mixing.helpers import RULES, D, H, K, inputs, mixing, qkv

LINEAR = [name for name in RULES if isinstance(mixing(name), LinearAttention)]


def drawn(rule: str, length: int) -> tuple[LinearAttention, Inputs, torch.Tensor]:
    q, k, v = (randn(1, H, length, K, seed=s) for s in (1, 2, 3))
    made = mixing(rule, context=length)
    assert isinstance(made, LinearAttention)
    return made, Inputs(q, k, None, randn(1, length, D, seed=4)), v


def assert_paths_agree(rule: str, length: int) -> None:
    made, given, v = drawn(rule, length)
    with torch.no_grad():
        expected = made.finish(made.weights(given) @ made.values(v, given.x_BTD), given.x_BTD)
        # Sums over thousands of tokens round relative to the largest outputs, which are not bounded without a row sum.
        atol = 2e-5 * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(made(given, v), expected, atol=atol, rtol=1e-3)


@pytest.mark.parametrize("rule", LINEAR)
@pytest.mark.parametrize("length", [1, 150])
def test_the_linear_path_is_the_explicit_one(rule: str, length: int) -> None:
    assert_paths_agree(rule, length)


# The explicit weights of the delta rule solve a system of 4,096 equations; its path is tested with linear_time.
@pytest.mark.slow
@pytest.mark.parametrize("rule", [name for name in LINEAR if name != "gated_delta"])
def test_4096_tokens(rule: str) -> None:
    assert_paths_agree(rule, 4096)


# Up to 2,048 tokens the explicit weights of nprf cost less than its FFT.
@pytest.mark.parametrize("rule", [name for name in LINEAR if name != "nprf"])
def test_no_t_x_t_matrix_is_kept_in_training(rule: str) -> None:
    made, given, v = drawn(rule, 600)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        made(given, v.requires_grad_())
    assert max(kept) < H * 600 * 600


@pytest.mark.parametrize("rule", [name for name in LINEAR if mixing(name).normalized])  # type: ignore[union-attr]
def test_rows_sum_to_one(rule: str) -> None:
    """All of those whose features of queries and keys have something in common."""
    (q, k, _), x = qkv(), inputs()
    sums = mixing(rule).weights(Inputs(q, k, None, x)).sum(-1)
    assert ((sums - 1).abs().le(1e-5) | (sums == 0)).all()
    assert (sums - 1).abs().le(1e-5).float().mean() > 0.9
