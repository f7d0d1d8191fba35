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


@pytest.mark.parametrize("size", [1, 4, 5])
def test_the_median_is_the_lower_one(size):
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(lower_median(x, 1), x.sort(1).values[:, (size - 1) // 2])


@pytest.mark.gpu
def test_deterministic_forms_on_a_gpu():
    x = torch.randn(3, 100, generator=torch.Generator().manual_seed(0)).cuda()
    expected = x.cumsum(1), lower_median(x, 1)
    torch.use_deterministic_algorithms(True)
    try:
        torch.testing.assert_close(cumsum(x, 1), expected[0])
        assert torch.equal(lower_median(x, 1), expected[1])
    finally:
        torch.use_deterministic_algorithms(False)
