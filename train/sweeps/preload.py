"""Imported once by the sweep's forkserver, so that each run starts with all modules in memory.

Slurm signals all processes of a job, and Ctrl-C all processes of a terminal. The server ignores these signals, from
before the slow imports on: if it died, the sweep could no longer wait for its runs to write their checkpoints.
"""

# ruff: noqa: E402
import signal

for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(signum, signal.SIG_IGN)

import lightning.pytorch
import omegaconf
import torch.profiler
import wandb

import data.datamodule
import data.prepare
import train.run.callback
import train.run.module
import train.run.trainer
from train.runfolder.provenance import commit

__all__ = ["data", "lightning", "omegaconf", "torch", "train", "wandb"]

commit()  # Kept for all runs: asking git takes longer than the rest of a start.
