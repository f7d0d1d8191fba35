"""`strategy=fsdp`: each device holds a part of every parameter, of its gradient and of its optimizer state.

FSDP2 (`torch.distributed.fsdp.fully_shard`) through Lightning's ModelParallelStrategy. A block's parameters are whole
while the block runs, those outside the blocks during a whole step; between steps all are DTensors, rows shared out.
Checkpoints hold whole tensors, in the format of the other strategies, so that a run can go on with any of them.

What stays whole: each process makes the initial model in its memory, not its device's, before it keeps its part; the
first one gathers a checkpoint there; and under autocast the bf16 copies of the weights live from forward to backward.
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
    """Block by block, then the rest. Replaces the parameters: whoever keeps some has to take them again."""
    mesh = mesh["data_parallel"]
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # Training enters the model there and takes the head's matrix itself.
    register_fsdp_forward_method(model, "hidden")


def reshard(model: nn.Module) -> None:
    """Gives up what a forward pass without a backward pass has left whole; nothing for a model without shards."""
    if isinstance(model, FSDPModule):
        model.reshard()


def whole(state: Any) -> Any:
    """A state dict with whole tensors, on the CPU, in place of its DTensors; on all processes but the first with None.

    All processes have to ask for it together. A state without DTensors is returned itself.
    """

    def take(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        tensor = value.full_tensor()
        return tensor.cpu() if dist.get_rank() == 0 else None

    return tree_map(take, state) if any(isinstance(v, DTensor) for v in tree_leaves(state)) else state


def part(value: Any, like: torch.Tensor) -> Any:
    """This process' shard of a whole tensor; what isn't of the parameter's shape has none."""
    if isinstance(like, DTensor) and isinstance(value, torch.Tensor) and value.shape == like.shape:
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value


class Sharded(ModelParallelStrategy):
    """Over all devices of all nodes, with whole tensors in one file as checkpoint."""

    def __init__(self, devices: int) -> None:
        super().__init__(data_parallel_size=devices, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return whole(getattr(optimizer, "_optimizer", optimizer).state_dict())

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        # Mapped: the processes of a machine share its pages.
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
