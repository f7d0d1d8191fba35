"""Replaces the generated parts of hand-written pages, which stand between two marker lines."""

from __future__ import annotations

from pathlib import Path

from conf.axis import ConfigError

ROOT = Path(__file__).parents[2]
"""The root of the repository. The paths that `files()` returns are relative to it."""


def replaced(text: str, begin: str, end: str, new: str) -> str:
    """Returns the text with `new` between two marker lines. Raises ConfigError if a marker is missing."""
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not closed:
        raise ConfigError(f"the marker lines {begin.strip()!r} and {end.strip()!r} are missing: add them")
    return before + found + new + closed + after


def marks(name: str) -> tuple[str, str]:
    """Returns the marker lines of the part `name`."""
    return f"<!-- {name}: written by python -m train.docs -->\n", f"<!-- end of {name} -->\n"


def page(path: str, parts: dict[str, str]) -> dict[Path, str]:
    """Returns the page at `path` with its generated parts replaced, in the form that `files()` returns."""
    text = (ROOT / path).read_text(encoding="utf-8")
    for name, new in parts.items():
        text = replaced(text, *marks(name), new)
    return {Path(path): text}
