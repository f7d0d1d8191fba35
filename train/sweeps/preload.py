"""Imported once by the sweep's forkserver, so that each run starts with all modules in memory.

Slurm signals all processes of a job, and Ctrl-C all processes of a terminal. The server ignores these signals: if it
died, the sweep could no longer wait for its runs to write their checkpoints. It starts with them blocked.
"""

# ruff: noqa: E402
import signal

from train.run.interrupt import STOP
from train.run.lean import import_lightning

for signum in STOP:
    signal.signal(signum, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)

import_lightning()
import lightning.pytorch
import omegaconf
import torch.profiler
import wandb

import data.datamodule
import data.prepare
import train.run.callback
import train.run.module
import train.run.packed
import train.run.trainer
from train.runfolder.provenance import commit

__all__ = ["data", "lightning", "omegaconf", "torch", "train", "wandb"]

commit()  # Kept for all runs: asking git takes longer than the rest of a start.
