"""Generated parts of hand-written pages: the text between two marker lines belongs to `python -m train.docs`."""

from __future__ import annotations

from pathlib import Path

from conf.axis import ConfigError

ROOT = Path(__file__).parents[2]
"""The root of the repository; the paths that `files()` returns start here."""


def replaced(text: str, begin: str, end: str, new: str) -> str:
    """Returns the text with `new` between the marker lines `begin` and `end`."""
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not closed:
        raise ConfigError(f"no generated part between {begin.strip()!r} and {end.strip()!r}: add these two lines")
    return before + found + new + closed + after


def marks(name: str) -> tuple[str, str]:
    """Returns the marker lines around the part `name` of a page."""
    return f"<!-- {name}: written by python -m train.docs -->\n", f"<!-- end of {name} -->\n"


def page(path: str, parts: dict[str, str]) -> dict[Path, str]:
    """Returns the page at `path` with each of its generated parts replaced, as `files()` returns it."""
    text = (ROOT / path).read_text()
    for name, new in parts.items():
        text = replaced(text, *marks(name), new)
    return {Path(path): text}
