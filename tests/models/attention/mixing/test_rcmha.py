"""Relative convolutional attention."""

from typing import cast

import torch

from models.attention.convolution import CausalConvolution
from models.attention.mixing.base import Inputs
from models.attention.mixing.rcmha import RelativeConvolutional
from tests.models.attention.mixing.helpers import H, K, T, build, qkv
from tests.models.attention.mixing.linear_helpers import fixture

KNOBS: dict[str, str] = {}
PARAMETERS = H * K + T * H * (K + 1) + 12 * K


class TestRCMHA:
    def test_vector(self) -> None:
        q, k, v = fixture()
        made = cast(RelativeConvolutional, build("rcmha", heads=1, head_dim=2, context=3, scale=2**-0.5))
        with torch.no_grad():
            for part in (made.query, made.key, made.value):
                part.weight_WC.copy_(torch.tensor([[0.25, 0], [0.5, -0.5], [1, 1]]))
                assert part.bias_C is not None
                part.bias_C.copy_(torch.tensor([0.1, 0]))
            made.u_HK.copy_(torch.tensor([[0.5, -0.5]]))
            made.e_THK.copy_(torch.tensor([[[0.0, 1]], [[1, 0]], [[-1, 1]]]))
            made.b_TH.copy_(torch.tensor([[0.0], [0.2], [-0.3]]))
        expected = torch.tensor([[1.1, 0], [0.6, 1], [2.35, -1.5]])
        torch.testing.assert_close(made.values(v, None)[0, 0], expected)
        z = torch.tensor([[2.163747, 3.860803, -torch.inf], [0.148492, -0.452548, -0.081317]])
        torch.testing.assert_close(made.weights(Inputs(q, k))[0, 0, 1:], torch.softmax(z, -1), atol=1e-6, rtol=0)
        expected = torch.tensor([[1.1, 0], [0.677425, 0.845150], [1.406982, -0.274779]])
        torch.testing.assert_close(made(Inputs(q, k), v)[0, 0], expected, atol=1e-6, rtol=0)

    def test_it_starts_as_softmax_but_for_the_convolutions(self) -> None:
        (q, k, v), softmax = qkv(), build("softmax")
        torch.testing.assert_close(build("rcmha")(Inputs(q, k), v), softmax(Inputs(q, k), v), atol=1e-6, rtol=1e-5)

    def test_convolutions_are_drawn(self) -> None:
        made = cast(RelativeConvolutional, build("rcmha"))
        with torch.no_grad():
            made.draw(torch.Generator().manual_seed(0))
        parts = [part for part in made.modules() if isinstance(part, CausalConvolution)]
        assert len(parts) == 3
        assert all(0.4 < part.weight_WC.abs().max() <= 3**-0.5 for part in parts)
        assert (made.e_THK == 0).all()

    def test_distances_beyond_the_context_take_the_last(self) -> None:
        (q, k, _), made = qkv(), cast(RelativeConvolutional, build("rcmha", context=4))
        with torch.no_grad():
            made.b_TH[3] = 100.0
        weights = made.weights(Inputs(q, k))
        assert weights[:, :, 8, 6:].max() < 1e-6
