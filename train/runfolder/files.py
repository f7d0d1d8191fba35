"""Reads and writes the files of a run folder, atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from conf.axis import ConfigError


def write_atomically(path: Path, text: str) -> None:
    """Writes to a temporary file and renames it, so that a reader sees the old text or the new one, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def save_atomically(path: Path, tensors: Mapping[str, Any]) -> None:
    """Saves tensors like `write_atomically`. Raises OSError if the disk is full."""
    import torch

    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(tensors, file)
    except RuntimeError as error:  # If a write fails, torch's writer fails again on closing and hides the OSError.
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; {} if the file is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a JSONL file, [] if it is missing. Raises ConfigError if a line is damaged."""
    if not path.exists():
        return []
    return list(rows_of(path.read_text("utf-8", errors="replace").splitlines(keepends=True), path))


def rows_of(lines: Iterable[str], path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of JSONL lines, without a truncated last line. Raises ConfigError if a line is damaged."""
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
        except ValueError:
            raise ConfigError(f"{path}: line {number} is damaged: delete the folder to train the run again") from None
        yield row


def if_stale(lock: Path) -> str:
    """Returns what to do about a lock whose holder may have died.

    It is empty if the file system has locks, which end with their process. On others, filelock writes the holder's
    process and host into the file, which stays if that machine dies.
    """
    try:
        holder = lock.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return ""
    return f", or delete {lock} if process {' on '.join(holder[:2])} has died" if holder else ""


def unwritable(folder: Path, error: OSError) -> ConfigError:
    """Returns the error for an `out` folder that can't be written."""
    return ConfigError(f"out={folder}: {error.strerror}: choose a folder that can be written")
