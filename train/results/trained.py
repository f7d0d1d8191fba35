"""A run that has ended, for measurements behind training: its config, its model, its validation batches."""

from __future__ import annotations

from pathlib import Path

import torch

from conf.axis import ConfigError
from data.batches import validation_batches
from data.prepare import prepare
from models.gpt import GPT
from train.config.compose import from_file
from train.config.schema import Config
from train.runfolder.folder import RunFolder, require_format


def config_of(path: Path) -> Config:
    """ConfigError when there is no trained run in the folder."""
    if not (path / "weights.pt").exists():
        raise ConfigError(f"{path} has no weights.pt: give folders of runs that have ended")
    require_format([RunFolder(path)], path)
    return from_file(path / "config.yaml")


def model_of(path: Path, config: Config) -> GPT:
    """With its trained weights, in evaluation mode."""
    model = GPT(config, vocab_size=config.data.vocab_size, context=config.context)
    model.load_state_dict(torch.load(path / "weights.pt", weights_only=True))
    return model.eval()


def validation_of(config: Config, *, batch_size: int, count: int) -> list[torch.Tensor]:
    """Batches of the run's validation set, [B, T + 1] each."""
    prepared = prepare(config.data, Path(config.cache).expanduser(), progress=False)
    return list(validation_batches(prepared.validation, batch_size=batch_size, context=config.context, count=count))
