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
    """TensorBoard: an event file for each attempt in the run folder's tensorboard/; needs the package tensorboard."""

    name: Literal["tensorboard"] = "tensorboard"
    detail: Detail = "summary"
    """summary sums up blocks and tensors, in at most 100 names whatever the depth; all sends every value besides."""

    def build(self, folder: Path, *, run_id: str, run_name: str, group: str | None) -> Logger:
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False)

    def require_package(self) -> None:
        if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
            raise ConfigError("logger=tensorboard needs a package that isn't here: pip install tensorboard")
