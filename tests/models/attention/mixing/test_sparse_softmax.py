"""Sparse softmax."""

import torch

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import T, build, of_logits, one_dimensional, qkv

KNOBS: dict[str, str] = {"k": "2"}


class TestSparseSoftmax:
    def test_vectors(self) -> None:
        """Softmax over the two largest; in float64, by hand."""
        weights = of_logits("sparse_softmax", k=2)
        torch.testing.assert_close(weights[2, :3], torch.tensor([0.141851, 0.858149, 0.0]), atol=1e-6, rtol=0)
        torch.testing.assert_close(weights[3], torch.tensor([0.0, 0.310026, 0.689974, 0.0]), atol=1e-6, rtol=0)

    def test_as_many_keys_as_there_are_is_softmax(self) -> None:
        q, k, _ = qkv()
        for count in (T, 10 * T):
            full = build("sparse_softmax", k=count).weights(Inputs(q, k))
            torch.testing.assert_close(full, build("softmax").weights(Inputs(q, k)), atol=0, rtol=0)

    def test_a_row_has_k_keys_and_sums_to_one(self) -> None:
        q, k, _ = qkv()
        weights = build("sparse_softmax", k=3).weights(Inputs(q, k))
        rows = torch.arange(1, T + 1).clamp_max(3).expand(weights.shape[:3])
        assert torch.equal((weights > 0).sum(-1), rows)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]))

    def test_one_key_is_the_maximum(self) -> None:
        assert one_dimensional("sparse_softmax", [0.3, 2.0, 1.9], k=1).tolist() == [0, 1, 0]

    def test_ties_are_all_kept(self) -> None:
        row = one_dimensional("sparse_softmax", [1.0, 0.5, 0.5, -1.0, 0.5], k=2)
        expected = torch.tensor([1.0, 0.5, 0.5, 0.5]).softmax(0)
        torch.testing.assert_close(row[[0, 1, 2, 4]], expected)
        assert row[3] == 0
