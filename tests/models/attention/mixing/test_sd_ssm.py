"""The dense state space."""

import copy

import pytest
import torch
import torch.nn.functional as F

from models.carry import Carry
from tests.conftest import randn
from tests.models.attention.mixing.helpers import B, D
from tests.models.attention.mixing.replacement_helpers import (
    LENGTHS,
    assert_causal_at_any_length,
    assert_finite,
    assert_refuses,
    mixer,
)

KNOBS = {"state": "8", "matrices": "3", "p": "1.4"}


def test_vector() -> None:
    """Two matrices, the identity and the swap."""
    made = mixer("sd_ssm", state=2, matrices=2)
    made.transitions.weight_MNN = torch.nn.Parameter(torch.tensor([[[1.0, 0], [0, 1]], [[0, 1], [1, 0]]]))
    a = made.transition(torch.tensor([[[0.0, 0], [2, -1], [-1, 1]]]))
    expected = torch.tensor([[0.977786, 0.048681], [0.048681, 0.977786]])
    torch.testing.assert_close(a[0, 1], expected, atol=1e-6, rtol=0)
    h = made.states(a, torch.tensor([[[1.0, 0], [0, 1], [2, -1]]]))
    expected = torch.tensor([[1, 0], [0.977786, 1.048681], [3.098567, 0.041546]])
    torch.testing.assert_close(h[0], expected, atol=2e-6, rtol=0)


def test_columns_have_norm_one() -> None:
    made = mixer("sd_ssm", state=2, matrices=1)
    made.transitions.weight_MNN = torch.nn.Parameter(torch.tensor([[[1.0, 2], [-1, 0]]]))
    expected = torch.tensor([[0.561231, 1], [-0.561231, 0]])
    torch.testing.assert_close(made.transition(torch.zeros(1, 1, 1))[0, 0], expected, atol=1e-5, rtol=0)
    norms = mixer("sd_ssm").transition(randn(B, 5, 6)).abs().pow(1.2).sum(-2).pow(1 / 1.2)
    torch.testing.assert_close(norms, torch.ones(B, 5, 64))


@pytest.mark.parametrize("length", LENGTHS)
@torch.no_grad()
def test_it_is_the_recurrence(length: int) -> None:
    """Token by token in float64, with torch's norm of the columns."""
    made, x = mixer("sd_ssm", state=8), randn(1 if length > 1000 else B, length, D)
    expected = copy.deepcopy(made).double()
    weight_MNN, state, states = expected.transitions.weight_MNN, torch.zeros(len(x), 8, dtype=torch.float64), []
    for x_BD in x.double().unbind(1):
        share_BM = (expected.choose(x_BD) + expected.bias_M).softmax(-1)
        a_BNN = (share_BM[..., None, None] * weight_MNN).sum(1)
        a_BNN = a_BNN / a_BNN.norm(p=1.2, dim=1, keepdim=True)
        state = (a_BNN @ state[..., None])[..., 0] + expected.value(x_BD)
        states.append(state)
    outputs = expected.out(F.layer_norm(torch.stack(states, 1), (8,), eps=1e-5))
    torch.testing.assert_close(made(x, Carry()).double(), outputs, atol=1e-4, rtol=1e-3)


def test_causal() -> None:
    assert_causal_at_any_length(mixer("sd_ssm"))


def test_finite() -> None:
    assert_finite(mixer("sd_ssm"))


def test_start() -> None:
    weight = mixer("sd_ssm").transitions.weight_MNN
    bound = (3 / 64) ** 0.5
    assert weight.shape == (6, 64, 64)
    assert 0.99 * bound < weight.abs().max() <= bound


def test_parameters() -> None:
    assert sum(p.numel() for p in mixer("sd_ssm").parameters()) == 6 * 64**2 + 2 * 64 * D + 6 * (D + 1) + 64


def test_refusals() -> None:
    assert_refuses("sd_ssm")
