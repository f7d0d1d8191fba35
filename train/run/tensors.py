"""Statistics of parameters, gradients and updates, whole or shared out over processes, as device tensors.

Not among the probes of models/: DTensor takes as long to import as half of torch, and what trains nothing needs none.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor


def local(x: torch.Tensor) -> torch.Tensor:
    """The rows of a DTensor that this process holds; any other tensor itself. Detached."""
    return (x.to_local() if isinstance(x, DTensor) else x).detach()


def tensor_norms(tensors: list[torch.Tensor]) -> torch.Tensor:
    """L2 norm of each of the tensors, [len(tensors)]; of DTensors with rows on all processes, of the whole of each."""
    norms_N = torch.stack(torch._foreach_norm([local(t) for t in tensors]))
    if not any(isinstance(t, DTensor) for t in tensors):
        return norms_N
    # Norms, not sums of squares: the same bits on all processes, in whatever order they are added.
    norms_PN = [torch.empty_like(norms_N) for _ in range(dist.get_world_size())]
    dist.all_gather(norms_PN, norms_N)
    return torch.stack(norms_PN).norm(dim=0)


def tensor_rms(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Root mean square of each of the tensors, [len(tensors)] in fp32."""
    norms = tensor_norms(tensors).float()
    return norms / torch.tensor([math.sqrt(t.numel()) for t in tensors], device=norms.device)
