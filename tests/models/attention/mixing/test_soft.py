"""SOFT."""

from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs
from models.gpt import GPT
from tests.conftest import randn, tiny
from tests.models.attention.mixing.helpers import D, build, qkv
from tests.models.attention.mixing.linear_helpers import fixture

KNOBS = {"normalize": "row"}
PARAMETERS = -D * D


class TestSOFT:
    @pytest.mark.parametrize(
        ("normalize", "expected"),
        [
            ("none", [[1, 0], [0.037992, 1], [2.059106, -0.683062]]),
            ("row", [[1, 0], [0.036602, 0.963398], [1.496395, -0.496395]]),
            ("symmetric", [[1, 0], [0.037291, 0.963398], [1.503828, -0.461528]]),
        ],
    )
    def test_vectors(self, normalize: str, expected: list[list[float]]) -> None:
        q, _, v = fixture()
        made = build("soft", heads=1, head_dim=2, scale=2**-0.5, normalize=normalize)
        torch.testing.assert_close(made(Inputs(q, q), v)[0, 0], torch.tensor(expected), atol=1e-6, rtol=0)

    def test_weights(self) -> None:
        q, _, _ = fixture()
        weights = build("soft", heads=1, head_dim=2, scale=2**-0.5).weights(Inputs(q, q))[0, 0]
        expected = torch.tensor([[1, 0, 0], [0.037291, 0.963398, 0], [0.050386, 0.265193, 0.726721]])
        torch.testing.assert_close(weights, expected, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("normalize", ["none", "row", "symmetric"])
    def test_a_common_shift_changes_nothing(self, normalize: str) -> None:
        (q, _, _), made = qkv(), build("soft", normalize=normalize)
        moved = q + randn(8, seed=9)
        torch.testing.assert_close(made.weights(Inputs(moved, moved)), made.weights(Inputs(q, q)), atol=1e-5, rtol=1e-4)

    def test_sums_of_rows_are_at_least_one(self) -> None:
        q, _, _ = qkv()
        assert build("soft", normalize="none").weights(Inputs(100 * q, 100 * q)).sum(-1).min() >= 1 - 1e-2

    def test_equal_tokens_have_equal_shares(self) -> None:
        """Three equal tokens: weights 1 / 3 of the last row if it is normalized, 1 if it is not."""
        x = torch.ones(1, 1, 3, 2)
        for normalize, weight in (("none", 1.0), ("row", 1 / 3)):
            found = build("soft", heads=1, head_dim=2, normalize=normalize).weights(Inputs(x, x))[0, 0, 2]
            torch.testing.assert_close(found, torch.full((3,), weight))


def test_one_matrix_makes_queries_and_keys() -> None:
    layer: Any = GPT(tiny("attention=soft"), vocab_size=32, context=8).blocks[0].attention
    assert layer.key is layer.query


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="attention=soft has one matrix of queries and keys, but layout=gqa"):
        tiny("attention=soft", "layout=gqa")
