"""Who starts the processes of a run on several devices, and which of them keeps its folder."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment

from train.config.schema import Config


def started_by_srun(config: Config) -> bool:
    """Whether this is one of the tasks of `srun`, one a device of the run."""
    processes = (config.devices or 1) * config.nodes
    return processes > 1 and "SLURM_PROCID" in os.environ and os.environ.get("SLURM_STEP_NUM_TASKS") == str(processes)


def cluster_environment(config: Config) -> ClusterEnvironment | None:
    """For Lightning; None leaves it to guess, which on a Slurm machine takes every process for a task of a parallel job
    and would requeue it. Here a task is one only where srun started as many, and slurm/task.py alone requeues."""
    if started_by_srun(config):
        return SLURMEnvironment(auto_requeue=False)
    return None if "TORCHELASTIC_RUN_ID" in os.environ else LightningEnvironment()


def is_rank_zero(config: Config) -> bool:
    """Only the first process of a run keeps its folder."""
    names = ["LOCAL_RANK", "NODE_RANK", *(["SLURM_PROCID"] if started_by_srun(config) else [])]
    return all(os.environ.get(name, "0") == "0" for name in names)
