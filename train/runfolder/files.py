"""Reads and writes the files of a run folder, atomically."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from conf.axis import ConfigError


def write_atomically(path: Path, text: str) -> None:
    """The file is the old one or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def save_atomically(path: Path, tensors: Mapping[str, Any]) -> None:
    """The same for tensors; on a full disk OSError, as for text."""
    import torch

    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(tensors, file)
    except RuntimeError as error:  # torch's writer trips over its own closing when the file can't be written
        raise error.__context__ if isinstance(error.__context__, OSError) else error from None
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} when there is none or it is damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; a last line that was cut off is left out."""
    return list(rows_of(path.read_text(errors="replace").splitlines(keepends=True), path)) if path.exists() else []


def rows_of(lines: Iterable[str], path: Path) -> Iterator[dict[str, Any]]:
    """The rows of the lines of that file, one after the other."""
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
        except ValueError:
            raise ConfigError(f"{path}: line {number} is damaged: delete the folder to train the run again") from None
        yield row


def unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"out={folder}: {error.strerror}: choose a folder that can be written")
