"""Core-context-aware attention."""

import pytest
import torch

from models.attention.mixing.base import ATTENTION, Inputs
from tests.conftest import choice
from tests.models.attention.mixing.helpers import B, H, T, alibi, build, qkv
from tests.models.attention.mixing.linear_helpers import FIXTURE

KNOBS = {"group": "4", "local": "3"}


def stacked() -> list[torch.Tensor]:
    """Q = q, k; K = k, q; V = v, k of the fixture, six tokens."""
    q, k, v = FIXTURE
    return [torch.cat(pair)[None, None] for pair in ((q, k), (k, q), (v, k))]


class TestCCA:
    def test_vector(self) -> None:
        q, k, v = stacked()
        made = build("cca", heads=1, head_dim=2, scale=2**-0.5, group=2, local=2)
        expected = torch.tensor([
            [1, 0], [0.257183, 0.742817], [0.708020, 0.291980], [1.145125, -0.145125], [0.598676, 0.401324],
            [0.767769, 0.303664],
        ])  # fmt: skip
        torch.testing.assert_close(made(Inputs(q, k), v)[0, 0], expected, atol=2e-6, rtol=0)

    @pytest.mark.parametrize("changes", [{"group": T, "local": 1}, {"group": 2, "local": T}])
    @pytest.mark.parametrize("biased", [False, True])
    def test_without_cores_it_is_softmax(self, changes: dict[str, int], biased: bool) -> None:
        (q, k, _), bias = qkv(), alibi() if biased else None
        expected = build("softmax").weights(Inputs(q, k, bias))
        torch.testing.assert_close(build("cca", **changes).weights(Inputs(q, k, bias)), expected)

    @pytest.mark.parametrize("biased", [False, True])
    def test_rows_sum_to_one(self, biased: bool) -> None:
        (q, k, _), bias = qkv(), alibi() if biased else None
        sums = build("cca", group=3, local=2).weights(Inputs(q, k, bias)).sum(-1)
        torch.testing.assert_close(sums, torch.ones(B, H, T))

    def test_which_tokens_are_pooled(self) -> None:
        """Groups and near tokens of three: row 8 has one core and sees from 3, row 11 two and from 6."""
        q, k, _ = qkv()
        weights = build("cca", group=3, local=3).weights(Inputs(q, k))
        for row, first in ((5, 0), (6, 3), (8, 3), (9, 6), (11, 6)):
            seen = build("softmax").weights(Inputs(q, k))[:, :, row, first : row + 1]
            near = weights[:, :, row, first : row + 1]
            ratio = near / seen
            torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio), atol=1e-4, rtol=1e-4)
        # All rows weigh the tokens of a core alike.
        shares = weights[:, :, 6:, :3] / weights[:, :, 6:, :3].sum(-1, keepdim=True)
        torch.testing.assert_close(shares, shares[:, :, :1].expand_as(shares))

    def test_the_default_is_a_share_of_the_context(self) -> None:
        config = choice(ATTENTION, "cca")
        assert [config.local_for(context) for context in (4, 256, 2048)] == [1, 32, 256]  # type: ignore[attr-defined]
