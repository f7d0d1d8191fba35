"""Stratified mixture of experts, token by token."""

from typing import Any

import pytest
import torch

from conf.axis import ConfigError
from models.carry import Carry
from models.experts.stratified import StratifiedMoE
from tests.conftest import randn
from tests.models.experts.test_layer import B, D, T, layer


def by_hand(built: Any, x_D: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """Returns a token's output and the experts on its way: two of each of `strata` strata."""
    h_D, stratum, way = x_D, 0, []
    while stratum < len(built.gates):
        read_D = h_D if stratum == 0 else built.norms[stratum - 1](h_D)
        logits_E = built.gates[stratum].weight @ read_D
        p_E = logits_E[2 * stratum :].softmax(-1)
        expert = int(p_E.argmax()) + 2 * stratum
        h_D = h_D + p_E.max() * built.experts[expert](read_D[None])[0]
        way.append(expert)
        stratum = expert // 2 + 1
    return h_D - x_D, way


@pytest.mark.parametrize("strata", [1, 2, 3])
def test_each_token_climbs(strata: int) -> None:
    built: Any = layer(router="stratified", experts=2 * strata, strata=strata)
    assert isinstance(built, StratifiedMoE)
    x = 2 * randn(B, T, D)
    carry = Carry(watch=True)
    found = built(x, carry)
    ways = []
    for b in range(B):
        for t in range(T):
            expected, way = by_hand(built, x[b, t])
            torch.testing.assert_close(found[b, t], expected, atol=1e-5, rtol=1e-5)
            ways.append(way)
    assert {len(way) for way in ways} == set(range(1, strata + 1))
    assert float(carry.stats["router/block0/experts"]) == pytest.approx(sum(map(len, ways)) / len(ways))
    share = [sum(e in way for way in ways) / sum(map(len, ways)) for e in range(2 * strata)]
    assert carry.stats["router/block0/load"].tolist() == pytest.approx(share)


def balance(p_NE: torch.Tensor) -> torch.Tensor:
    """Returns four experts' loss of balance, of tokens that use the most probable ones."""
    share_E = torch.bincount(p_NE.argmax(-1), minlength=p_NE.shape[1]) / len(p_NE)
    return 4 * (share_E * p_NE.mean(0)).sum()


def test_the_loss_is_the_mean_of_the_strata_s_balance() -> None:
    """The second gate sees the tokens that used an expert of the first stratum."""
    built: Any = layer(router="stratified", experts=4, strata=2, balance=1.0)
    x, carry = 2 * randn(B, T, D), Carry()
    built(x, carry)
    tokens = x.flatten(0, 1)
    p_N4 = (tokens @ built.gates[0].weight.T).softmax(-1)
    low = p_N4.argmax(-1) < 2
    chosen = zip(tokens[low], p_N4[low], p_N4[low].argmax(-1), strict=True)
    h = torch.stack([x_D + p_4[e] * built.experts[e](x_D[None])[0] for x_D, p_4, e in chosen])
    p_L2 = (built.norms[0](h) @ built.gates[1].weight[2:].T).softmax(-1)
    torch.testing.assert_close(carry.losses[0], (balance(p_N4) + balance(p_L2)) / 2)


def test_later_tokens_and_other_sequences_change_nothing() -> None:
    x = randn(B, T, D, seed=7)
    changed = x.clone()
    changed[0, 3:] += 1
    changed[1] -= 1
    one, other = (layer(router="stratified")(y) for y in (x, changed))
    torch.testing.assert_close(one[0, :3], other[0, :3], atol=1e-6, rtol=0)
    assert (one[0, 3:] - other[0, 3:]).abs().max() > 1e-2


def test_gradients_reach_all_gates_norms_and_experts() -> None:
    built = layer(router="stratified", balance=0.0)
    built(randn(B, 40, D, seed=7)).square().sum().backward()
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_indivisible_experts_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^experts=4 can't be divided into strata=3: use strata=2 or experts=3$"):
        layer(router="stratified", experts=4, strata=3)
