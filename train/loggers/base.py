"""Base of the `logger` axis: Lightning loggers that receive a copy of the local metrics. Their failure stops no run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, Axis


class Logger(Protocol):
    """The methods of Lightning's Logger that the mirror calls."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None: ...

    def log_hyperparams(self, params: Any) -> None: ...

    def finalize(self, status: str) -> None: ...


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class LoggerConfig:
    name: str

    def build(self, folder: Path, *, run_id: str, run_name: str, group: str | None) -> Logger | None:
        """Returns a logger that writes its files to `folder`, or None for no logging."""
        raise NotImplementedError

    def require(self) -> None:
        """Raises ConfigError if the logger can't start: a package is missing, or the environment has a bad setting."""

    def relogs_ended_runs(self) -> bool:
        """Returns whether the rows of a run that has already ended are logged again."""
        return False


LOGGER: Axis[LoggerConfig] = Axis("logger")


@LOGGER.register
@dataclass(frozen=True, kw_only=True, config=CHECKED)
class NoLogger(LoggerConfig):
    """Writes local files only."""

    name: Literal["none"] = "none"

    def build(self, folder: Path, *, run_id: str, run_name: str, group: str | None) -> Logger | None:
        return None
