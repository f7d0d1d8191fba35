"""`python -m train.docs`: writes every generated file again and prints those that changed."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import train.docs


def files() -> dict[Path, str]:
    """Returns the full text of every generated file."""
    found: dict[Path, str] = {}
    for module in pkgutil.iter_modules(train.docs.__path__):
        if module.name != "__main__":
            found |= getattr(importlib.import_module(f"train.docs.{module.name}"), "files", dict)()
    return found


def main() -> None:
    for path, text in files().items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(path)


if __name__ == "__main__":
    main()
