"""How the processes of a multi-device run were started, and which of them is rank zero."""

from __future__ import annotations

import os

import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment

from train.config.schema import Config


def started_by_srun(config: Config) -> bool:
    """Returns whether `srun` started this process as one task per device of the run."""
    processes = (config.devices or 1) * config.nodes
    return processes > 1 and "SLURM_PROCID" in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS") == str(processes)


def started_together(config: Config) -> bool:
    """Returns whether torchrun or `srun` started all processes at once; else rank 0 starts the others as it fits."""
    return started_by_srun(config) or ((config.devices or 1) * config.nodes > 1 and "TORCHELASTIC_RUN_ID" in os.environ)


def cluster_environment(config: Config) -> ClusterEnvironment | None:
    """Returns Lightning's cluster environment; None, for torchrun, lets Lightning detect it.

    On a Slurm node, detection would treat any process as a task of a parallel job and requeue that job. Here only the
    tasks of `srun` count as such, and only slurm/task.py requeues.
    """
    if started_by_srun(config):
        return SLURMEnvironment(auto_requeue=False)
    return None if "TORCHELASTIC_RUN_ID" in os.environ else LightningEnvironment()


def is_rank_zero(config: Config) -> bool:
    """Returns whether this is the first process of the run, the only one that writes to its folder."""
    names = ["LOCAL_RANK", "NODE_RANK"]
    if started_by_srun(config):
        names.append("SLURM_PROCID")
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        names = ["RANK"]  # torchrun says the node by GROUP_RANK
    return all(os.environ.get(name, "0") == "0" for name in names)


def leave() -> None:
    """Leaves the process group, whose threads could abort the process while it exits."""
    if dist.is_initialized():
        dist.destroy_process_group()
