"""Self-adjust softmax."""

import torch

from models.attention.mixing.base import Inputs
from tests.models.attention.mixing.helpers import build, of_logits, one_dimensional, qkv

KNOBS: dict[str, str] = {"form": "product"}


class TestSelfAdjustSoftmax:
    def test_vectors(self) -> None:
        """p (z - m) / (M - m), and p z; in float64, by hand."""
        weights = of_logits("sa_softmax")
        torch.testing.assert_close(weights[2, :3], torch.tensor([0.054416, 0.822987, 0.0]), atol=1e-6, rtol=0)
        torch.testing.assert_close(weights[3], torch.tensor([0.0, 0.135832, 0.544141, 0.020236]), atol=1e-6, rtol=0)
        expected = torch.tensor([-0.026984, 0.171149, 0.816212, 0.0])
        torch.testing.assert_close(of_logits("sa_softmax", form="product")[3], expected, atol=1e-6, rtol=0)

    def test_between_zero_and_softmax(self) -> None:
        """The largest positive logit keeps its weight, the least negative one has none."""
        (q, k, _), length = qkv(), qkv()[0].shape[2]
        z = (q @ k.mT * q.shape[-1] ** -0.5)[..., -1, :]
        p = build("softmax").weights(Inputs(q, k))[..., -1, :]
        row = build("sa_softmax").weights(Inputs(q, k))[..., -1, :]
        assert (row >= 0).all()
        assert (row <= p).all()
        assert (z.amax(-1) > 0).all()
        assert (z.amin(-1) < 0).all()
        assert length == z.shape[-1]
        top, bottom = z.argmax(-1, keepdim=True), z.argmin(-1, keepdim=True)
        torch.testing.assert_close(row.gather(-1, top), p.gather(-1, top), atol=1e-6, rtol=1e-6)
        assert (row.gather(-1, bottom) == 0).all()

    def test_equal_positive_logits_are_softmax(self) -> None:
        torch.testing.assert_close(one_dimensional("sa_softmax", [0.7] * 4), torch.full((4,), 0.25))

    def test_equal_negative_logits_are_nothing(self) -> None:
        assert (one_dimensional("sa_softmax", [-0.7] * 4) == 0).all()

    def test_zero_logits_are_nothing(self) -> None:
        """0 / 1e-10."""
        assert (one_dimensional("sa_softmax", [0.0] * 4) == 0).all()

    def test_the_gradient_flows_through_minimum_and_maximum(self) -> None:
        """Of two keys, z and 0 < z: the row is [p, 0], whose gradient is softmax's, p (1 - p)."""
        rule = build("sa_softmax", heads=1, head_dim=1, scale=1.0)
        k = torch.tensor([0.8, 0.0])[None, None, :, None].requires_grad_()
        row = rule.weights(Inputs(torch.ones_like(k), k))[0, 0, -1]
        (gradient,) = torch.autograd.grad(row[0], k)
        p = torch.tensor(0.8).sigmoid()
        torch.testing.assert_close(gradient[0, 0, 0, 0], p * (1 - p), atol=1e-6, rtol=0)
