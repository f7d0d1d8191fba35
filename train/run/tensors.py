"""Norms, RMS and inner products of parameters, gradients and updates, full or sharded, as device tensors.

They are not in models/probes because DTensor takes half as long to import as torch, and only training needs it.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor


def local(x: torch.Tensor) -> torch.Tensor:
    """Returns this rank's rows of a DTensor, or any other tensor itself, detached."""
    return (x.to_local() if isinstance(x, DTensor) else x).detach()


def tensor_norms(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Returns the L2 norm of each tensor, shape [N]; of a DTensor, the norm of the full tensor."""
    return _norms([local(t) for t in tensors], tensors)


def _norms(parts: list[torch.Tensor], tensors: list[torch.Tensor]) -> torch.Tensor:
    """Returns the L2 norms of tensors, [N], of which this rank has these parts."""
    norms_PN = _of_ranks(torch.stack(torch._foreach_norm(parts)), tensors)
    return norms_PN[0] if len(norms_PN) == 1 else norms_PN.norm(dim=0)


def in_units(tensors: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Returns this rank's part of each tensor over the tensor's largest magnitude, and these magnitudes, [N], in fp32.

    Numbers near 1e-30, as gradients can be, have no squares in fp32 otherwise.
    """
    units_N = _of_ranks(torch.stack([_largest(local(t)) for t in tensors]), tensors).amax(0).float()
    return [local(t) / unit.clamp_min(1e-38) for t, unit in zip(tensors, units_N, strict=True)], units_N


def _of_ranks(x_N: torch.Tensor, tensors: list[torch.Tensor]) -> torch.Tensor:
    """Returns x_N of every rank, [P, N, ...], if tensors are sharded, else x_N alone, [1, N, ...].

    Gathers instead of reducing: every rank then adds in the same order, to the same bits.
    """
    if not any(isinstance(t, DTensor) for t in tensors):
        return x_N[None]
    ranks_PN = [torch.empty_like(x_N) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks_PN, x_N)
    return torch.stack(ranks_PN)


def tensor_rms(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Returns the root mean square of each tensor, shape [N], in fp32."""
    parts, units_N = in_units(tensors)
    counts_N = torch.tensor([math.sqrt(t.numel()) for t in tensors], device=units_N.device)
    return _norms(parts, tensors).float() / counts_N * units_N


def cosine(xs: list[torch.Tensor], ys: list[torch.Tensor]) -> torch.Tensor:
    """Returns the cosine of two lists of tensors, each taken as one vector; 0 if one of them is zero."""
    # In units of the largest elements of each list, see in_units.
    units = [_of_ranks(torch.stack([_largest(local(t)) for t in both]), both).max() for both in (xs, ys)]
    sums = []
    for pair in zip(xs, ys, strict=True):
        x, y = (local(t) / unit.clamp_min(1e-38) for t, unit in zip(pair, units, strict=True))
        sums.append(torch.stack([(x * y).sum(), (x * x).sum(), (y * y).sum()]))
    xy, xx, yy = _of_ranks(torch.stack(sums), xs).sum((0, 1))
    return xy / (xx.sqrt() * yy.sqrt()).clamp_min(1e-30)


def update_cosines(changes: list[torch.Tensor], weights: list[torch.Tensor], norms_N: torch.Tensor) -> torch.Tensor:
    """Returns the cosine of each tensor's update w' - w and its weights w before it, [N]; 0 for an update of zero.

    `changes` are w - w', `weights` are w', and `norms_N` those of w. With d = w - w', <-d, w> = -<d, w'> - |d|^2.
    """
    parts, units_N = in_units(changes)
    changed_N = _norms(parts, changes)
    dots_N = torch.stack([torch.dot(d.flatten(), local(w).flatten()) for d, w in zip(parts, weights, strict=True)])
    inner_N = -_of_ranks(dots_N, changes).sum(0) - changed_N.square() * units_N
    return inner_N / (changed_N * norms_N).clamp_min(1e-30)


def _largest(x: torch.Tensor) -> torch.Tensor:
    """Returns the largest magnitude; 0 for a rank without rows of a tensor."""
    return x.abs().max() if x.numel() else x.new_zeros(())


def zero_share(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Returns the share of elements that are exactly zero."""
    zeros_N = torch.stack([(local(t) == 0).sum() for t in tensors])
    return _of_ranks(zeros_N, tensors).sum() / sum(t.numel() for t in tensors)
