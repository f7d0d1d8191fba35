"""Sliding-window softmax."""

import pytest
import torch

from models.attention.mixing.base import ATTENTION, Inputs
from tests.conftest import choice, randn
from tests.models.attention.mixing.helpers import H, K, build, qkv

KNOBS = {"window": "3"}


@pytest.mark.parametrize("window", [1, 3, 5])
def test_it_is_softmax_of_the_last_tokens(window: int) -> None:
    q, k, _ = qkv()
    z = (q @ k.mT) * K**-0.5
    seen = torch.ones(12, 12).tril().triu(1 - window).bool()
    expected = torch.softmax(z.masked_fill(~seen, -torch.inf), -1)
    torch.testing.assert_close(build("window", window=window).weights(Inputs(q, k)), expected)


def test_long_sequences_take_the_chunked_path() -> None:
    q, k, v = (randn(1, H, 300, K, seed=s) for s in (1, 2, 3))
    made = build("window", window=7, context=300)
    torch.testing.assert_close(made(Inputs(q, k), v), made.weights(Inputs(q, k)) @ v, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("context", "window"), [(2048, 128), (512, 32), (8, 2)])
def test_the_default_is_a_share_of_the_context(context: int, window: int) -> None:
    assert choice(ATTENTION, "window").window_for(context) == window  # type: ignore[attr-defined]
