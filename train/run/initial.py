"""Takes the initial weights of a run from a trained one, as `init_from` asks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from conf.axis import ConfigError
from conf.paths import expanded
from models.architecture import Architecture
from models.gpt import GPT
from train.config.schema import Config
from train.runfolder.folder import RunFolder


def initial_weights(config: Config) -> dict[str, torch.Tensor] | None:
    """Returns the final weights of the run that `init_from` names, or None if it is null.

    Raises ConfigError if there are none, if they are damaged or not finite, or those of another architecture.
    """
    file = initial_file(config)
    if file is None:
        return None
    weights = RunFolder(file.parent).weights()
    with torch.device("meta"):
        model = GPT(
            config,
            vocab_size=config.data.vocab_size,
            context=config.context,
            keep_maxima=config.optimizer.needs_maxima,
        )
    wanted = model.state_dict()
    for name in [*wanted, *(weights.keys() - wanted.keys())]:
        ours, theirs = (_shape(state, name) for state in (wanted, weights))
        if ours != theirs:
            raise ConfigError(
                f"init_from={config.init_from} is of another architecture: {name} is {theirs} there and {ours} here: "
                "use the same model, axes and data.vocab_size"
            )
    return weights


def initial_file(config: Config) -> Path | None:
    """Returns the weights file that `init_from` names, or None if it is null. Raises ConfigError if it isn't there."""
    if config.init_from is None:
        return None
    file = expanded(config.init_from, "init_from") / "weights.pt"
    if not file.exists():
        raise ConfigError(f"init_from={config.init_from} has no weights.pt: give the folder of a run that has ended")
    return file


def require_initial(configs: Iterable[Config]) -> None:
    """Raises ConfigError like `initial_weights`, which it tries once for each architecture and each `init_from`."""
    tried = set()
    for config in configs:
        if config.init_from is not None:
            sizes = (config.init_from, config.context, config.data.vocab_size, config.optimizer.needs_maxima)
            architecture = [getattr(config, field) for field in Architecture.__dataclass_fields__]
            if (key := repr((sizes, architecture))) not in tried:
                initial_weights(config)
            tried.add(key)


def _shape(state: dict[str, torch.Tensor], name: str) -> str:
    return "x".join(map(str, state[name].shape)) or "a number" if name in state else "missing"
