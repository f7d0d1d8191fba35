"""Cumulative sums and medians in the forms that a GPU can take where torch's own raise, and products without autocast.

With torch.use_deterministic_algorithms, `torch.cumsum` of floats and `torch.median` along a dimension raise on CUDA. A
compiled `cumsum` along a dimension that is not the last fails in torch 2.11's code generator for large tensors.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F

CHUNK = 64


def full_precision(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Disables autocast, so that matrix products stay in the dtype of their inputs."""
    device = x.device.type
    # Entering a context of autocast takes as long as a small matrix product.
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def cumsum(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Returns torch.cumsum(x, dim)."""
    special = x.is_cuda and (torch.are_deterministic_algorithms_enabled() or torch.compiler.is_compiling())
    return chunked_cumsum(x, dim) if special else x.cumsum(dim)


def lower_median(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Returns the values of torch.median(x, dim): of two middle values the lower one."""
    if x.is_cuda and torch.are_deterministic_algorithms_enabled():
        return x.sort(dim).values.select(dim, (x.shape[dim] - 1) // 2)
    return x.median(dim).values


def chunked_cumsum(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Returns the sums as products with a triangle of ones, in chunks, whose totals are summed in the same way.

    Computes in fp32 at least, and returns that under autocast, as torch.cumsum does on CUDA. A value that is not finite
    makes its whole chunk NaN.
    """
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    dtype = wide.dtype if torch.is_autocast_enabled(x.device.type) else x.dtype
    with full_precision(x):
        sums = _sums(wide.movedim(dim, -1)).movedim(-1, dim) if x.numel() else wide.clone()
    return sums.to(dtype)


def _sums(last: torch.Tensor) -> torch.Tensor:
    length = last.shape[-1]
    chunk = min(CHUNK, length)
    parts = F.pad(last, (0, -length % chunk)).unflatten(-1, (-1, chunk))
    within = parts @ torch.ones(chunk, chunk, dtype=last.dtype, device=last.device).triu()
    if parts.shape[-2] > 1:
        within = within + F.pad(_sums(within[..., -1])[..., :-1], (1, 0))[..., None]
    return within.flatten(-2)[..., :length]
