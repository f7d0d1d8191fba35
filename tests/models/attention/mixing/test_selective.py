"""Selective attention."""

import pytest
import torch

from models.attention.mixing.base import Inputs
from models.attention.mixing.selective import Selective
from models.probes import causal
from tests.models.attention.mixing.helpers import LOGITS, WEIGHTS, B, H, T, build, mixing, of_logits, qkv

KNOBS = {"keep_first": "false"}


def masked(keep_first: bool) -> torch.Tensor:
    """F of LOGITS."""
    return Selective(1.0, keep_first).masked(causal(torch.tensor([[LOGITS]])))[0, 0]


class TestSelective:
    def test_vectors(self) -> None:
        weights = of_logits("selective")
        torch.testing.assert_close(weights[:3], torch.tensor(WEIGHTS[:3]), atol=1e-6, rtol=0)
        expected = torch.tensor([0.114059, 0.041960, 0.690017, 0.153964])
        torch.testing.assert_close(weights[3], expected, atol=1e-6, rtol=0)

    def test_what_is_taken(self) -> None:
        """The first head's positive logits, from the row after: 1 and 0.2 for the first key, 2 for the second."""
        assert torch.equal(masked(True), torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0]]))
        expected = torch.tensor([[0.0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1.2, 2, 0, 0]])
        torch.testing.assert_close(masked(False), expected)

    @pytest.mark.parametrize("keep_first", [False, True])
    def test_it_grows_down_a_column_and_spares_the_token_itself(self, keep_first: bool) -> None:
        q, k, _ = qkv()
        taken = Selective(1.0, keep_first).masked(causal(q @ k.mT))[:, 0]
        assert (taken.diff(dim=1) >= 0).all()
        assert (taken.triu(-1) == 0).all()
        assert (taken[:, :, 0] > 0).any() != keep_first

    def test_all_heads_lose_the_same(self) -> None:
        q, k, _ = qkv()
        weights, plain = (mixing(name).weights(Inputs(q, k)) for name in ("selective", "softmax"))
        lost = [(plain[:, h, -1] / weights[:, h, -1]).log() for h in range(H)]
        differences = [x - x[:, -1:] for x in lost]
        torch.testing.assert_close(differences[0], differences[1], atol=1e-4, rtol=1e-4)
        assert differences[0].max() > 1

    def test_one_large_vote_hides_a_key_from_later_rows(self) -> None:
        """Row 6 of the first head attends strongly to key 3."""
        q, k, _ = qkv()
        q[:, 0, 6], k[:, 0, 3] = 0.0, 0.0
        q[:, 0, 6, 0], k[:, 0, 3, 0] = 300.0, 30.0
        q[:, 0, :6, 0], q[:, 0, 7:, 0] = 0.0, 0.0
        weights, plain = (mixing(name).weights(Inputs(q, k)) for name in ("selective", "softmax"))
        assert (weights[:, :, 7:, 3] == 0).all()
        assert (weights[:, 0, 6, 3] == 1).all()
        assert weights[:, 1, 3:7, 3].min() > 0
        assert plain[:, 1, 7:, 3].min() > 0

    def test_without_votes_it_is_softmax(self) -> None:
        q, k, v = qkv()
        k[:, 0] = -q[:, 0, :1].abs().sum() * torch.ones_like(k[:, 0])
        q[:, 0] = q[:, 0].abs()
        assert (q[:, 0] @ k[:, 0].mT <= 0).all()
        torch.testing.assert_close(
            mixing("selective")(Inputs(q, k), v), mixing("softmax")(Inputs(q, k), v), atol=1e-6, rtol=1e-5
        )

    def test_gradients_flow_through_the_mask(self) -> None:
        """Of a second head's output to the first one's queries."""
        q, k, v = qkv()
        outputs = build("selective")(Inputs(q.requires_grad_(), k), v)[:, 1]
        (gradient,) = torch.autograd.grad(outputs.square().sum(), q)
        assert gradient[:, 0].abs().max() > 1e-3
        assert gradient.shape == (B, H, T, 8)
