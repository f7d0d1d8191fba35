"""Linear attention with a learned normalizer."""

from typing import cast

import torch

from models.attention.mixing.base import Inputs
from models.attention.mixing.dsf import LearnedNormalizer
from tests.models.attention.mixing.helpers import D, H, build, inputs, qkv
from tests.models.attention.mixing.linear_helpers import fixture

KNOBS: dict[str, str] = {}
PARAMETERS = D * H + H
BUT = {"test_gradients_of_both_paths_agree": "outputs are so large that their sines amplify rounding; see below"}


class TestDSF:
    def test_vector(self) -> None:
        """w x + b = [0, 0.5, -1]."""
        q, k, v = fixture()
        made = cast(LearnedNormalizer, build("dsf", heads=1, head_dim=2))
        with torch.no_grad():
            made.normalizer.linear.weight.copy_(torch.tensor([[1.0, 0.0]]))
        x = torch.tensor([[[0.0, 0], [0.5, 0], [-1, 0]]])
        expected = torch.tensor([[1, 0], [0.303265, 1.213061], [-2.718282, 2.718282]])
        torch.testing.assert_close(made(Inputs(q, k, None, x), v)[0, 0], expected, atol=2e-6, rtol=0)

    def test_the_normalizer_is_a_head_and_token_each(self) -> None:
        (q, k, _), x, made = qkv(), inputs(), cast(LearnedNormalizer, build("dsf"))
        y = (x @ made.normalizer.linear.weight.T).mT[..., None]
        torch.testing.assert_close(made.weights(Inputs(q, k, None, x)), (-y).exp() * (q @ k.mT).tril())

    def test_gradients_of_both_paths(self) -> None:
        made = build("dsf")
        leaves = [y.requires_grad_() for y in (*qkv(), inputs())]
        q, k, v, x = leaves
        outputs = made(Inputs(q, k, None, x), v), made.weights(Inputs(q, k, None, x)) @ v
        fast, explicit = (torch.autograd.grad(y.square().mean(), leaves) for y in outputs)
        torch.testing.assert_close(fast, explicit, atol=1e-5, rtol=1e-4)

    def test_it_is_bounded(self) -> None:
        (q, k, _), x, made = qkv(), inputs(), cast(LearnedNormalizer, build("dsf"))
        assert made.factor(Inputs(q, k, None, 1e4 * x)).max() <= torch.tensor(20.0).exp() * 1.0001
