"""Tropical attention."""

from typing import cast

import pytest
import torch

from models.attention.mixing.base import Inputs
from models.attention.mixing.tropical import MaxPlus, Tropical, closeness
from tests.models.attention.mixing.helpers import K, T, alibi, build, mixing, qkv

KNOBS = {"projections": "false"}
PARAMETERS = 3 * K * K
MAXIMA = "values are combined by a maximum, not by a sum; see below"
BUT = {
    "test_fast_path_is_the_explicit_one": MAXIMA,
    "test_gradients_of_both_paths_agree": MAXIMA,
    "test_gradcheck": "maxima have kinks that steps of 1e-2 meet",
}
X = [[1.0, 0], [0.5, 2], [3, 1], [0, 0.5]]


class TestTropical:
    def test_vectors(self) -> None:
        rule, x = build("tropical", heads=1, head_dim=2, projections=False), torch.tensor([[X]])
        expected = torch.tensor([[1, 0], [0.5, 2], [3, 1], [1 / 3, 1.25]])
        torch.testing.assert_close(rule(Inputs(x, x), x)[0, 0], expected, atol=1e-6, rtol=0)

    def test_max_plus_maps(self) -> None:
        map = MaxPlus(2)
        with torch.no_grad():
            map.weight_KK.copy_(torch.tensor([[0.0, 5], [-1, 1]]))
        assert torch.equal(map(torch.tensor([[[[3.0, 1], [9, 0]]]]))[0, 0], torch.tensor([[6.0, 2], [9, 8]]))

    def test_closeness_is_a_projective_distance(self) -> None:
        """At most 0, 0 for equal tokens, blind to a constant added to all channels, and symmetric."""
        q, k, _ = qkv()
        s = closeness(q, k)
        assert (s <= 0).all()
        assert (closeness(q, q).diagonal(dim1=-2, dim2=-1) == 0).all()
        torch.testing.assert_close(closeness(q + 2.5, k - 1.0), s, atol=1e-5, rtol=0)
        torch.testing.assert_close(closeness(k, q).mT, s)
        difference = q[1, 0, 4] - k[1, 0, 2]
        assert s[1, 0, 4, 2] == difference.min() - difference.max()

    @pytest.mark.parametrize("biased", [False, True])
    def test_outputs_are_the_largest_weighted_values(self, biased: bool) -> None:
        """1 + o_ic = max_j w_ij exp(v_jc): the weights of the probes are those of the outputs."""
        rule, (q, k, v), bias = cast(Tropical, mixing("tropical")), qkv(), alibi() if biased else None
        weights, e = rule.weights(Inputs(q, k, bias)), rule.value(torch.relu(v).log1p()).exp()
        expected = (weights[..., None] * e[:, :, None]).amax(-2) - 1
        torch.testing.assert_close(rule(Inputs(q, k, bias), v), expected, atol=1e-5, rtol=1e-5)
        assert weights.max() <= 1
        assert (weights.triu(1) == 0).all()

    def test_equal_tokens_put_out_their_value(self) -> None:
        rule, (q, _, v) = build("tropical", projections=False), qkv()
        q, v = q[:, :, :1].expand_as(q), v[:, :, :1].expand_as(v)
        torch.testing.assert_close(rule(Inputs(q, q), v), torch.relu(v), atol=1e-6, rtol=1e-6)

    def test_values_are_shifted_through(self) -> None:
        """Max-plus linearity: c added to every mapped value is c added to the logarithm of every output."""
        rule, (q, k, v) = cast(Tropical, mixing("tropical")), qkv()
        before = rule(Inputs(q, k), v).log1p()
        with torch.no_grad():
            cast(MaxPlus, rule.value).weight_KK.add_(0.7)
        torch.testing.assert_close(rule(Inputs(q, k), v).log1p(), before + 0.7, atol=1e-5, rtol=1e-5)

    def test_maps_start_as_unit_normal_from_the_seed(self) -> None:
        starts = []
        for seed in (0, 0, 1):
            rule = build("tropical", head_dim=16)
            with torch.no_grad():
                rule.draw(torch.Generator().manual_seed(seed))
            starts.append(torch.stack(list(rule.parameters())).detach())
        assert torch.equal(starts[0], starts[1])
        assert (starts[0] - starts[2]).abs().max() > 1
        assert starts[0].shape == (3, 16, 16)
        assert abs(starts[0].std() - 1) < 0.1

    def test_gradients_reach_the_largest_alone(self) -> None:
        rule, (q, k, v) = build("tropical", projections=False), qkv()
        v = v.abs() + 0.1
        (gradient,) = torch.autograd.grad(rule(Inputs(q, k), v.requires_grad_())[0, 0, T - 1, 3], v)
        assert gradient.count_nonzero() == 1

    def test_gradients_are_those_of_plain_maxima(self) -> None:
        """Written with amax over all T x T x K numbers, whose gradients agree where nothing ties."""
        rule, leaves = cast(Tropical, mixing("tropical")), [x.requires_grad_() for x in qkv()]
        with torch.no_grad():
            rule.draw(torch.Generator().manual_seed(0))
        weights = [cast(MaxPlus, part).weight_KK for part in (rule.query, rule.key, rule.value)]
        maps = [(torch.relu(x).log1p()[..., None, :] + w).amax(-1) for x, w in zip(leaves, weights, strict=True)]
        difference = maps[0][..., :, None, :] - maps[1][..., None, :, :]
        s = (difference.amin(-1) - difference.amax(-1)).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        expected = (s[..., None] + maps[2][:, :, None]).amax(-2).expm1()
        found = rule(Inputs(*leaves[:2]), leaves[2])
        torch.testing.assert_close(found, expected)
        sources = [*leaves, *weights]
        for one, other in zip(
            torch.autograd.grad(found.sin().sum(), sources),
            torch.autograd.grad(expected.sin().sum(), sources),
            strict=True,
        ):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
