"""Imported once by the sweep's fork server, so that each run starts with everything in memory.

A scheduler signals all processes of a job. The server ignores its signals from before the slow imports on: without it
the sweep would lose sight of the runs that are writing checkpoints.
"""

# ruff: noqa: E402
import signal

for signum in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(signum, signal.SIG_IGN)

import lightning.pytorch
import torch
import wandb

import data.datamodule
import data.prepare
import train.run.callback
import train.run.module
import train.run.trainer

__all__ = ["data", "lightning", "torch", "train", "wandb"]
