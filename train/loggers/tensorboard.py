"""`logger=tensorboard`: TensorBoard event files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, ConfigError
from train.loggers.base import LOGGER, Logger, LoggerConfig
from train.loggers.detail import Detail


@LOGGER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TensorBoard(LoggerConfig):
    """TensorBoard event files, one per attempt, in the run folder's tensorboard/; needs the package tensorboard."""

    name: Literal["tensorboard"] = "tensorboard"
    detail: Detail = "summary"
    """summary reduces over blocks and tensors, to at most 100 names at any depth. all also sends every value."""

    def build(self, folder: Path, *, run_id: str, run_name: str, group: str | None) -> Logger:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False)

    def require(self) -> None:
        if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
            raise ConfigError("logger=tensorboard needs a package that is not installed: pip install tensorboard")
