"""The attention layer around a mixing rule."""

import math

import torch

from models.carry import Carry
from models.positions import POSITION
from tests.conftest import choice, randn
from tests.models.attention.mixing.helpers import B, D, H, K, T, layer, output


class TestLayer:
    def test_composition(self) -> None:
        """Project, split into heads, normalize, add positions, mix, project: written out for one set of weights."""
        attention, x_BTD = layer("softmax", qk_norm="rmsnorm"), randn(B, T, D)
        rope, heads = choice(POSITION, "rope").build(D, H, T), []
        for h in range(H):
            rows = slice(h * K, (h + 1) * K)
            q, k, v = (x_BTD @ p.weight[rows].T for p in (attention.query, attention.key, attention.value))
            q, k = (x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
            q, k = rope.rotate(q, k)
            logits = (q @ k.mT / math.sqrt(K)).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf)
            heads.append(logits.softmax(-1) @ v)
        expected = torch.cat(heads, -1) @ attention.out.weight.T
        torch.testing.assert_close(output(attention, x_BTD), expected, atol=1e-5, rtol=1e-5)

    def test_probes_only_when_watched(self) -> None:
        attention, x_BTD = layer("softmax"), randn(B, T, D)
        one, other = Carry(), Carry(watch=True)
        unwatched, watched = attention(x_BTD, one), attention(x_BTD, other)
        assert one.stats == {}
        assert "attention/block0/entropy" in other.stats
        assert torch.equal(watched, unwatched)

    def test_positions_are_not_owned_by_the_layer(self) -> None:
        """One table for all blocks: else learned positions would be counted and decayed once a block."""
        assert not any("positions" in name for name, _ in layer("softmax", "learned").named_modules())
