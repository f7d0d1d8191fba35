"""The causal convolution."""

import torch
import torch.nn.functional as F

from models.attention.convolution import CausalConvolution
from tests.conftest import randn


def with_taps(taps: list[list[float]], bias: list[float] | None = None) -> CausalConvolution:
    made = CausalConvolution(len(taps), len(taps[0]), bias=bias is not None)
    with torch.no_grad():
        made.weight_WC.copy_(torch.tensor(taps))
        if made.bias_C is not None:
            made.bias_C.copy_(torch.tensor(bias))
    return made


def test_vector() -> None:
    """x = [1, 2, -1, 0.5], taps from the oldest to the current [0.1, -0.2, 0.3, 0.4], bias 0.05; then silu."""
    y = with_taps([[0.1], [-0.2], [0.3], [0.4]], [0.05])(torch.tensor([[1.0], [2.0], [-1.0], [0.5]]))
    torch.testing.assert_close(y[:, 0], torch.tensor([0.45, 1.15, 0.05, -0.35]))
    expected = torch.tensor([0.274788, 0.873438, 0.025625, -0.144684])
    torch.testing.assert_close(F.silu(y)[:, 0], expected, atol=1e-6, rtol=0)


def test_it_is_torchs_convolution() -> None:
    made, x_BTC = CausalConvolution(4, 6, bias=True), randn(3, 10, 6)
    with torch.no_grad():
        made.draw(torch.Generator().manual_seed(0))
    expected = F.conv1d(F.pad(x_BTC.mT, (3, 0)), made.weight_WC.mT[:, None], made.bias_C, groups=6).mT
    torch.testing.assert_close(made(x_BTC), expected)
    assert made.weight_WC.abs().max() <= 0.5


def test_it_starts_as_the_identity_until_it_is_drawn() -> None:
    x_BTC = randn(3, 10, 6)
    torch.testing.assert_close(CausalConvolution(4, 6)(x_BTC), x_BTC, atol=0, rtol=0)


def test_heads_have_their_own_taps() -> None:
    made, x_BHTK = CausalConvolution(2, 3, 1, 4), randn(2, 3, 5, 4)
    with torch.no_grad():
        made.weight_WC[0, 1, 0, 2] = 2.0
    expected = x_BHTK.clone()
    expected[:, 1, 1:, 2] += 2 * x_BHTK[:, 1, :-1, 2]
    torch.testing.assert_close(made(x_BHTK), expected)
