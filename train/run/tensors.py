"""Norms and RMS of parameters, gradients and updates, full or sharded, as device tensors.

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
    norms_N = torch.stack(torch._foreach_norm([local(t) for t in tensors]))
    if not any(isinstance(t, DTensor) for t in tensors):
        return norms_N
    # Gathers all norms instead of all-reducing squares: every rank then adds in the same order, to the same bits.
    norms_PN = [torch.empty_like(norms_N) for _ in range(dist.get_world_size())]
    dist.all_gather(norms_PN, norms_N)
    return torch.stack(norms_PN).norm(dim=0)


def tensor_rms(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Returns the root mean square of each tensor, shape [N], in fp32."""
    norms = tensor_norms(tensors).float()
    return norms / torch.tensor([math.sqrt(t.numel()) for t in tensors], device=norms.device)
