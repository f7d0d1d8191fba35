"""`strategy=fsdp`: shards every parameter, its gradient and its optimizer state over the devices.

Uses FSDP2 (`torch.distributed.fsdp.fully_shard`) through Lightning's ModelParallelStrategy. The parameters of a block
are gathered while the block runs, those outside the blocks for a whole step. Between steps all are DTensors, sharded by
rows. Checkpoints hold full tensors, like those of the other strategies, so a run can resume with any strategy.

Not everything is sharded: each process builds the full initial model in host memory before it keeps its shard, rank 0
gathers checkpoints in host memory, and under autocast the bf16 copies of the weights live from forward to backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_leaves, tree_map

from models.gpt import GPT


def shard(model: GPT, mesh: DeviceMesh) -> None:
    """Shards each block, then the rest. This replaces the parameters, so references to the old ones become stale."""
    mesh = mesh["data_parallel"]
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # Training calls `hidden`, not `forward`, and applies the head's matrix itself.
    register_fsdp_forward_method(model, "hidden")


def reshard(model: nn.Module) -> None:
    """Frees the parameters that a forward pass without a backward pass left gathered. No-op without FSDP."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole(state: Any) -> Any:
    """Returns a state dict with its DTensors gathered on the CPU of rank 0; other ranks get None in their place.

    All ranks have to call it together. A state without DTensors is returned unchanged.
    """

    def take(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        tensor = value.full_tensor()
        return tensor.cpu() if dist.get_rank() == 0 else None

    return tree_map(take, state) if any(isinstance(v, DTensor) for v in tree_leaves(state)) else state


def part(value: Any, like: torch.Tensor) -> Any:
    """Returns this rank's shard of a full tensor; values without the parameter's shape are returned unchanged."""
    if isinstance(like, DTensor) and isinstance(value, torch.Tensor) and value.shape == like.shape:
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value


class Sharded(ModelParallelStrategy):
    """Shards over all devices of all nodes, and writes checkpoints as one file of full tensors."""

    def __init__(self, devices: int) -> None:
        super().__init__(data_parallel_size=devices, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return whole(getattr(optimizer, "_optimizer", optimizer).state_dict())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        # Memory-mapped, so that the processes of a machine share its pages.
        return torch.load(Path(checkpoint_path), map_location="cpu", weights_only=weights_only, mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

        assert self.lightning_module is not None
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.lightning_module, checkpoint["state_dict"], options=options)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, found in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {i: {k: part(v, parameters[i]) for k, v in of_one.items()} for i, of_one in found["state"].items()}
            optimizer.load_state_dict({**found, "state": state})
