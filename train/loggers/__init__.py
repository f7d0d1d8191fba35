"""Loggers, the `logger` axis. Every file here is imported, so that a logger is registered by being there."""

from conf.axis import import_all
from train.loggers.base import LOGGER, LoggerConfig

import_all("train.loggers")

__all__ = ["LOGGER", "LoggerConfig"]
