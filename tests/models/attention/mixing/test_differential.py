"""Differential attention."""

import math

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs
from models.attention.mixing.differential import Differential
from tests.conftest import tiny
from tests.models.attention.mixing.helpers import LOGITS, VALUES, WEIGHTS, H, K, T, alibi, build, mixing, qkv
from tests.models.test_gpt import gpt

KNOBS: dict[str, str] = {"lambda_init": "0.8"}
PARAMETERS = 6 * K

QUERIES = torch.tensor([[1.0, 0], [0.5, -1], [2, 1], [-1, 0.5]])
KEYS = torch.tensor([[0.5, 1], [1, -0.5], [-1, 2], [0.3, 0.3]])


def made(block: int = 0) -> Differential:
    """A pair of heads of one feature, lambda at its start."""
    rule = build("differential", heads=2, head_dim=1, scale=1.0, context=4, block=block)
    assert isinstance(rule, Differential)
    return rule


def maps() -> torch.Tensor:
    """Two maps' logits: LOGITS, and the products of QUERIES and KEYS over sqrt(2)."""
    future = torch.ones(4, 4).triu(1).bool()
    return torch.stack([torch.tensor(LOGITS), QUERIES @ KEYS.T / math.sqrt(2)]).masked_fill(future, -math.inf)[None]


class TestDifferential:
    def test_vectors(self) -> None:
        """By hand in float64, lambda 0.2: both heads of the pair have the difference."""
        weights = made().of_logits(maps())[0]
        expected = torch.tensor([0.058821, 0.231639, 0.416118, 0.093422])
        torch.testing.assert_close(weights[:, 3], expected.expand(2, 4), atol=1e-6, rtol=0)
        values = torch.tensor(VALUES).T[None, :, :, None]
        mixed = made().finish(weights[None] @ values)
        torch.testing.assert_close(mixed[0, :, 3, 0], torch.tensor([0.470358, 1.028947]), atol=1e-5, rtol=0)

    def test_rows_sum_to_one_minus_lambda(self) -> None:
        rule, (q, k, _) = mixing("differential"), qkv()
        assert isinstance(rule, Differential)
        sums = rule.weights(Inputs(q, k)).sum(-1)
        torch.testing.assert_close(sums, (1 - rule.factor()).expand_as(sums), atol=1e-5, rtol=0)

    def test_lambda(self) -> None:
        rule = made()
        with torch.no_grad():
            for vector, value in zip(
                (rule.query_1, rule.key_1, rule.query_2, rule.key_2), (2, 0.5, 1, -1), strict=True
            ):
                vector.fill_(value)
        assert rule.factor().item() == pytest.approx(math.e - math.exp(-1) + 0.2, rel=1e-6)

    @pytest.mark.parametrize(("block", "expected"), [(0, 0.2), (1, 0.355509), (2, 0.470713), (11, 0.77787)])
    def test_start_of_lambda_by_block(self, block: int, expected: float) -> None:
        rule = made(block)
        assert rule.lambda_init == pytest.approx(expected, abs=1e-5)
        assert rule.factor().item() == pytest.approx(expected, abs=1e-5)

    @pytest.mark.parametrize("biased", [False, True])
    def test_equal_maps_give_standard_attention_up_to_norm(self, biased: bool) -> None:
        (q, k, v), softmax = qkv(), mixing("softmax")
        bias = None if not biased else alibi()
        bias = None if bias is None else bias[:1].expand(H, T, T)
        q, k = q[:, :1].expand_as(q), k[:, :1].expand_as(k)
        rule = build("differential", heads=H, head_dim=K, scale=K**-0.5, context=T)
        assert isinstance(rule, Differential)
        standard = (1 - rule.lambda_init) * softmax(Inputs(q, k, bias), v)
        pair = standard.transpose(1, 2).flatten(2)
        normed = pair / (pair.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (1 - rule.lambda_init)
        torch.testing.assert_close(rule(Inputs(q, k, bias), v).transpose(1, 2).flatten(2), normed, atol=1e-5, rtol=1e-5)

    def test_first_map_is_softmax(self) -> None:
        weights = made().of_logits(maps()) + 0.2 * torch.softmax(maps()[:, 1:], -1)
        torch.testing.assert_close(weights[0, 0], torch.tensor(WEIGHTS), atol=1e-6, rtol=0)

    def test_vectors_start_from_the_seed(self) -> None:
        """Normal with std 0.1, others each block; drawn after all matrices, which stay what they are without."""
        given = ("attention=differential", "model.depth=2", "model.width=64")
        model, again = gpt(*given), gpt(*given)
        found = {n: p for n, p in model.named_parameters() if ".mix.query_" in n or ".mix.key_" in n}
        assert len(found) == 8
        assert all(torch.equal(p, again.get_parameter(n)) for n, p in found.items())
        drawn = torch.stack(list(found.values()))
        assert 0.08 < drawn.std().item() < 0.12
        assert len({round(float(p.detach()[0]), 6) for p in found.values()}) == 8
        plain = gpt("model.depth=2", "model.width=64")
        assert all(torch.equal(p, model.get_parameter(n)) for n, p in plain.named_parameters())

    def test_an_odd_number_of_heads_is_refused(self) -> None:
        with pytest.raises(ConfigError) as error:
            tiny("attention=differential", "model.heads=1")
        assert str(error.value) == (
            "attention=differential takes pairs of heads, but model.heads=1 is odd: "
            "use an even number or attention=softmax"
        )
