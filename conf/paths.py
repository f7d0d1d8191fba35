"""Paths as users write and read them."""

from __future__ import annotations

from pathlib import Path


def expanded(path: str, setting: str) -> Path:
    """Returns a path with ~ replaced by the home folder. Raises ConfigError for a user who has none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        from conf.axis import ConfigError  # Completion does without pydantic.

        raise ConfigError(f"{setting}={path}: there is no home folder: give a path without ~, or set HOME") from None


def shown(path: Path) -> str:
    """Returns a path as messages name it: without links and `..`, and relative if it is below the current folder."""
    path, here = path.resolve(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
