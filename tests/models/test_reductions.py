"""The deterministic forms give what torch's own do."""

import pytest
import torch

from models.reductions import chunked_cumsum, cumsum, lower_median


@pytest.mark.parametrize(("shape", "dim"), [((2, 5), 1), ((64, 3), 0), ((2, 3, 65, 2), -2), ((9000,), 0), ((1, 1), -1)])
def test_a_chunked_sum_is_the_cumulative_sum(shape, dim):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    torch.testing.assert_close(chunked_cumsum(x, dim), x.cumsum(dim), rtol=1e-12, atol=1e-12)
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, torchs = (torch.autograd.grad((weight * f(x, dim)).sum(), x)[0] for f in (chunked_cumsum, torch.cumsum))
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)
    assert torch.equal(cumsum(x, dim), x.cumsum(dim))  # To the bit, where torch's own is deterministic.


def test_it_is_exact_under_autocast_and_of_half_precision_and_of_nothing():
    x = torch.nn.functional.logsigmoid(torch.randn(3, 512, generator=torch.Generator().manual_seed(0)))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(chunked_cumsum(x, 1), x.cumsum(1), rtol=1e-6, atol=1e-4)
        assert chunked_cumsum(x.bfloat16(), 1).dtype == torch.float32
    half = chunked_cumsum(x.bfloat16(), 1)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), x.bfloat16().float().cumsum(1), rtol=2**-8, atol=0)
    assert chunked_cumsum(x[:, :0], 1).shape == (3, 0)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_the_median_is_the_lower_one(size):
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lower_median(x, 1), x.sort(1).values[:, (size - 1) // 2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_deterministic_forms_on_a_gpu():
    x = torch.randn(3, 100, generator=torch.Generator().manual_seed(0)).cuda()
    expected = x.cumsum(1), lower_median(x, 1)
    torch.use_deterministic_algorithms(True)
    try:
        torch.testing.assert_close(cumsum(x, 1), expected[0])
        assert torch.equal(lower_median(x, 1), expected[1])
    finally:
        torch.use_deterministic_algorithms(False)
