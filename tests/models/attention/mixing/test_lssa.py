"""Length-scaled softplus attention."""

import math

import pytest
import torch

from conf.axis import ConfigError
from models.attention.mixing.base import Inputs
from tests.conftest import tiny
from tests.models.attention.mixing.helpers import K, build, one_dimensional, qkv

KNOBS: dict[str, str] = {}

# The queries and keys of dimension 2 whose weights are by hand, in float64.
Q = [[1.0, 0], [0.5, -1], [2, 1], [-1, 0.5]]
KEYS = [[0.5, 1.0], [1, -0.5], [-1, 2], [0.3, 0.3]]


def rows(rule: str, **changes: float) -> torch.Tensor:
    """The weights of these, scale 1/sqrt(2)."""
    made = build(rule, heads=1, head_dim=2, scale=2**-0.5, context=4, **changes)
    return made.weights(Inputs(torch.tensor([[Q]]), torch.tensor([[KEYS]])))[0, 0]


class TestLSSA:
    def test_vectors(self) -> None:
        expected = torch.tensor(
            [[1, 0, 0, 0], [0.388755, 0.352999, 0.258246, 0], [0.254889, 0.119116, 0.422748, 0.203247]]
        )
        torch.testing.assert_close(rows("lssa")[[0, 2, 3]], expected, atol=1e-6, rtol=0)

    def test_rows_sum_to_one_and_no_weight_is_zero(self) -> None:
        q, k, _ = qkv()
        weights = build("lssa").weights(Inputs(1e3 * q, k))
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        visible = torch.ones(weights.shape[-2:]).tril().bool()
        assert ((weights > 0) == visible).all()

    @pytest.mark.parametrize("factor", [0.1, 30.0])
    def test_lengths_of_queries_and_keys_and_the_scale_do_not_matter(self, factor: float) -> None:
        (q, k, _), rule = qkv(), build("lssa")
        torch.testing.assert_close(
            rule.weights(Inputs(factor * q, k / factor)), rule.weights(Inputs(q, k)), atol=1e-6, rtol=1e-5
        )
        assert torch.equal(build("lssa", scale=2.0).weights(Inputs(q, k)), rule.weights(Inputs(q, k)))

    def test_the_scale_is_log_of_both_lengths(self) -> None:
        """Where q = k the logit is log(head_dim) log(i), against -log(head_dim) log(i) for the opposite key."""
        q = torch.ones(1, 1, 2, K)
        k = torch.cat([-q[:, :, :1], q[:, :, :1]], 2)
        top, low = (math.log1p(math.exp(sign * math.log(K) * math.log(2))) for sign in (1, -1))
        last = build("lssa", heads=1).weights(Inputs(q, k))[0, 0, 1]
        torch.testing.assert_close(last, torch.tensor([low, top]) / (low + top), atol=1e-6, rtol=0)

    def test_queries_of_zero_see_all_keys_alike_and_learn(self) -> None:
        _, k, v = qkv()
        q = torch.zeros_like(k).requires_grad_()
        rule = build("lssa")
        torch.testing.assert_close(rule.weights(Inputs(q, k))[0, 0, 4, :5], torch.full((5,), 0.2))
        (gradient,) = torch.autograd.grad(rule(Inputs(q, k), v).sin().sum(), q)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 1

    def test_in_one_dimension_all_keys_are_alike(self) -> None:
        """log(1) = 0."""
        torch.testing.assert_close(one_dimensional("lssa", [-3.0, 1, 2, 5]), torch.full((4,), 0.25))

    @pytest.mark.parametrize("rule", ["lssa", "lssar"])
    @pytest.mark.parametrize("other", ["qk_norm=l2", "qk_norm=fixed", "parametrization=inverse_scale"])
    def test_what_it_takes_out_is_refused(self, rule: str, other: str) -> None:
        with pytest.raises(ConfigError, match=f"{other} .* attention={rule} .*: use .* or attention=softmax"):
            tiny(f"attention={rule}", other)
