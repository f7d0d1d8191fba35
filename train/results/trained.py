"""Loads the config, model and validation batches of an ended run, for measurements after training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from conf.axis import ConfigError
from data.batches import Prepared, counted, train_batch, validation_batches
from data.config import DataError
from data.prepare import prepare
from models.gpt import GPT
from models.layers import Linear
from train.config.compose import from_file
from train.config.schema import Config
from train.losses import Objective
from train.runfolder.folder import RunFolder, require_trained


def config_of(path: Path | str) -> Config:
    """Loads the config of an ended run. Raises ConfigError if the folder has no final weights."""
    path = Path(path)
    require_trained([path])
    return from_file(path / "config.yaml")


def require_blocks(path: Path, config: Config) -> None:
    """Raises ConfigError if the model has no blocks to measure."""
    if not config.model.depth:
        raise ConfigError(f"{path}: model.depth=0 has no blocks to measure: choose another run")


def model_of(path: Path | str, config: Config, finite: bool = True) -> GPT:
    """Loads the model with its final weights, in evaluation mode. Raises ConfigError like `RunFolder.weights`."""
    model = GPT(config, vocab_size=config.data.vocab_size, context=config.context)
    model.load_state_dict(RunFolder(Path(path)).weights(finite))
    return model.eval()


@torch.no_grad()
def unmapped(model: GPT) -> GPT:
    """Returns the model with the matrices of its blocks in place of the weights that they are computed from."""
    for module in model.blocks.modules():
        if isinstance(module, Linear):
            module.weight.copy_(module.matrix())
            module.map = nn.Identity()
    return model


def objective_of(config: Config) -> Objective:
    """Builds the run's loss, whose `cross_entropy` is what the run's validation reports."""
    return config.loss.build(vocab_size=config.data.vocab_size, seed=config.seed)


@torch.no_grad()
def loss_of(model: GPT, config: Config, batches: Sequence[torch.Tensor]) -> float:
    """Returns the cross-entropy that the run's validation reports, the mean over batches of shape [B, T + 1]."""
    objective, found = objective_of(config), []
    for tokens_BT1 in batches:
        answers_BT = config.data.answers(tokens_BT1)
        logits_NV = counted(model(tokens_BT1[:, :-1])[0], answers_BT)
        found.append(objective.cross_entropy(logits_NV, counted(tokens_BT1[:, 1:], answers_BT)))
    return float(torch.stack(found).mean())


def tokens_of(config: Config) -> Prepared:
    """Returns the run's data. Raises DataError if its text is not there."""
    try:
        config.data.require()
    except DataError as error:
        path = getattr(config.data, "path", None)
        if path is None or Path(path).is_absolute():
            raise
        raise DataError(f"{error}; the run was trained on {path} from another folder: start there") from None
    return prepare(config.data, config.token_folder, progress=False)


def training_of(config: Config, *, count: int) -> list[torch.Tensor]:
    """Returns the first batches that the run was trained on, each of shape [B, T + 1]."""
    tokens = tokens_of(config).train
    shape = {"batch_size": config.batch_size, "context": config.context}
    return [train_batch(tokens, seed=config.seed, step=step, **shape) for step in range(count)]


def validation_of(config: Config, *, batch_size: int | None = None, count: int | None = None) -> list[torch.Tensor]:
    """Returns batches of the run's validation set, each of shape [B, T + 1]; by default all of its validation loss."""
    prepared = tokens_of(config)
    shape = {"batch_size": batch_size or config.batch_size, "context": config.context}
    return list(validation_batches(prepared.validation, count=count or config.eval_batches, **shape))
