"""Attention with logits of keys alone."""

import pytest
import torch
import torch.nn.functional as F

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import B, H, T, alibi, build, mixing, qkv
from tests.models.attention.mixing.test_lssa import KEYS, Q, rows

KNOBS: dict[str, str] = {}


class TestKeyLogits:
    def test_vectors(self) -> None:
        logits = (F.silu(torch.tensor(Q)) * torch.tensor(KEYS)).sum(-1) * 2**-0.5
        torch.testing.assert_close(logits, torch.tensor([0.258468, 0.315158, -0.211762, 0.008971]), atol=1e-6, rtol=0)
        expected = torch.tensor([0.288819, 0.305665, 0.180471, 0.225045])
        torch.testing.assert_close(rows("non_approximate")[3], expected, atol=1e-6, rtol=0)

    def test_rows_are_one_row_cut_off(self) -> None:
        """The odds of two keys are the same for all queries that see both."""
        q, k, _ = qkv()
        weights = mixing("non_approximate").weights(Inputs(q, k))
        last = weights[:, :, -1:].expand_as(weights).tril()
        torch.testing.assert_close(weights, last / last.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)

    def test_a_query_matters_to_its_own_key(self) -> None:
        q, k, _ = qkv()
        rule = mixing("non_approximate")
        before = rule.weights(Inputs(q, k))
        q[:, :, 4] += 1.0
        after = rule.weights(Inputs(q, k))
        assert torch.equal(after[:, :, :4], before[:, :, :4])
        odds = [(w[:, :, -1, 4] / w[:, :, -1, 7]) for w in (before, after)]
        assert (odds[0] / odds[1]).log().abs().min() > 1e-3
        torch.testing.assert_close(after[:, :, -1, 3] / after[:, :, -1, 7], before[:, :, -1, 3] / before[:, :, -1, 7])

    def test_rotations_of_both_would_change_nothing_before_silu(self) -> None:
        """SiLU(R q) isn't R SiLU(q): with rotary positions the rule is another one, as its docstring says."""
        turn, _ = torch.linalg.qr(qkv()[2][0, 0, :8])
        q, k, _ = qkv()
        gated = F.silu(q)
        torch.testing.assert_close(((gated @ turn) * (k @ turn)).sum(-1), (gated * k).sum(-1), atol=1e-5, rtol=1e-5)
        rule = mixing("non_approximate")
        assert (rule.weights(Inputs(q @ turn, k @ turn)) - rule.weights(Inputs(q, k))).abs().max() > 1e-2

    @pytest.mark.parametrize("biased", [False, True])
    def test_probes_are_of_these_logits(self, biased: bool) -> None:
        (q, k, _), rule, bias = qkv(), build("non_approximate"), alibi() if biased else None
        probes, own = rule.watch(Inputs(q, k, bias)), (F.silu(q) * k).sum(-1) * rule.scale
        torch.testing.assert_close(probes["logit_max"], own.amax((0, 2)))
        torch.testing.assert_close(probes["q_norm"], F.silu(q).norm(dim=-1).mean((0, 2)))
        cosines = F.cosine_similarity(F.silu(q), k, dim=-1)
        torch.testing.assert_close(probes["cosine_mean"], cosines.mean((0, 2)))
        at = own.transpose(0, 1).flatten(1).argmax(1)
        expected = cosines.transpose(0, 1).flatten(1)[torch.arange(H), at]
        torch.testing.assert_close(probes["cosine_of_max_pair"], expected)
        entropy = torch.special.entr(rule.weights(Inputs(q, k, bias))).sum(-1)
        assert entropy.shape == (B, H, T)
        torch.testing.assert_close(probes["entropy"], entropy.mean((0, 2)), atol=1e-5, rtol=1e-5)
