"""Imported once by the sweep's fork server, so that each run starts with everything in memory."""

import lightning.pytorch
import torch
import wandb

import data.datamodule
import data.prepare
import train.run.callback
import train.run.module
import train.run.trainer

__all__ = ["data", "lightning", "torch", "train", "wandb"]
