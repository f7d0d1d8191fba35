"""The gated short convolution."""

import torch

from tests.models.attention.mixing.helpers import D
from tests.models.attention.mixing.replacement_helpers import (
    assert_causal_at_any_length,
    assert_finite,
    assert_refuses,
    mixer,
)

KNOBS = {"expand": "2", "taps": "2"}


def test_vector() -> None:
    """Taps from the oldest to the current [[0.1, 0.2], [0.3, -0.4], [0.5, 1]]."""
    made = mixer("short_conv")
    made.convolution.weight_WC = torch.nn.Parameter(torch.tensor([[0.1, 0.2], [0.3, -0.4], [0.5, 1]]))
    u_1, u_2 = torch.tensor([[1.0, 0], [2, 1], [-1, 0.5]]), torch.tensor([[1, 1], [0.5, 2], [1, -1]])
    expected = torch.tensor([[0.311230, 0], [0.510793, 1.462117], [0.109967, -0.052498]])
    torch.testing.assert_close(made.mixed(u_1, u_2), expected, atol=1e-6, rtol=0)


def test_parameters() -> None:
    assert sum(p.numel() for p in mixer("short_conv").parameters()) == 3 * 2 * D * D + 3 * 2 * D


def test_it_sees_three_tokens() -> None:
    assert_causal_at_any_length(mixer("short_conv"), reach=3)


def test_finite() -> None:
    assert_finite(mixer("short_conv"))


def test_refusals() -> None:
    assert_refuses("short_conv")
