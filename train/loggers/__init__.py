"""The `logger` axis. Importing this package registers the loggers in all its files."""

from conf.axis import import_all
from train.loggers.base import LOGGER, LoggerConfig

import_all("train.loggers")

__all__ = ["LOGGER", "LoggerConfig"]
