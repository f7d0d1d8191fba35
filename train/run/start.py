"""Refuses, before anything is written, runs that can't start on this machine."""

from __future__ import annotations

import os

import torch

from conf.axis import ConfigError
from train.config.schema import Config
from train.run.distributed import started_by_srun
from train.run.initial import initial_file


def require_start(config: Config) -> None:
    """Raises ConfigError if the run can't start here: Lightning would fail late or wait for ever.

    It is no part of the config's own check, because a sweep is submitted from machines without GPUs.
    """
    config.logger.require()
    _require_accelerator(config)
    _require_processes(config)
    initial_file(config)


def _require_accelerator(config: Config) -> None:
    gpus, mps = torch.cuda.device_count(), int(torch.backends.mps.is_available())
    kind = ("cuda" if gpus else "mps" if mps else "cpu") if config.accelerator == "auto" else config.accelerator
    if kind == "cpu":
        return
    there, wanted = {"cuda": gpus, "mps": mps}[kind], config.devices or 1
    if not there:
        raise ConfigError(f"accelerator={kind}: torch finds no such device here: use accelerator=cpu or auto")
    if wanted > there:
        raise ConfigError(
            f"devices={wanted}: torch finds {there} with accelerator={kind}: use devices={there} or fewer"
        )


def _require_processes(config: Config) -> None:
    """Raises ConfigError if the processes of a multi-device run were not started as the config says."""
    wanted = (config.devices or 1) * config.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ and (started := int(os.environ["WORLD_SIZE"])) != wanted:
        raise ConfigError(
            f"devices={config.devices or 1} nodes={config.nodes} need {wanted} processes, but torchrun started "
            f"{started}: use the same numbers in both"
        )
    by_hand = {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys()
    if config.nodes > 1 and not (started_by_srun(config) or "TORCHELASTIC_RUN_ID" in os.environ or by_hand):
        raise ConfigError(
            f"nodes={config.nodes}: nothing has started this run on the other machines: use a sweep with "
            f"launcher=slurm, or start it with torchrun --nnodes {config.nodes}"
        )
