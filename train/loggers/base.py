"""Loggers, the `logger` axis: mirrors of the local metrics, through Lightning's. Losing one never stops a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, Axis


class Logger(Protocol):
    """What the mirror calls: the part of Lightning's Logger that it needs."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None: ...

    def log_hyperparams(self, params: Any) -> None: ...

    def finalize(self, status: str) -> None: ...


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LoggerConfig:
    name: str

    def build(self, folder: Path, *, run_id: str, run_name: str, group: str | None) -> Logger | None:
        """Returns a logger that keeps its files in `folder`, or None."""
        raise NotImplementedError

    def require_package(self) -> None:
        """ConfigError where a package that it needs is missing."""

    def relogs_ended_runs(self) -> bool:
        """Whether a run that has ended is to be logged once more."""
        return False


LOGGER: Axis[LoggerConfig] = Axis("logger")


@LOGGER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoLogger(LoggerConfig):
    """Local files alone."""

    name: Literal["none"] = "none"

    def build(self, folder: Path, *, run_id: str, run_name: str, group: str | None) -> Logger | None:
        return None
