"""Loads a user's Python files, `plugins=./my_rules.py`, whose choices of any axis then work like the shipped ones.

The config names each file by its path and a hash of its content, which is part of a run's hash. A run therefore never
goes on with code that has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from conf import axis
from conf.axis import ConfigError, axes
from conf.paths import expanded
from train.config.choices import PLUGGED, default_of, shared_fields
from train.config.schema import Config

MODULE = "stabilab_plugin_"
"""The module of a plugin is called this and its hash, by which data.prepare knows the code of a corpus."""
NAMED = re.compile(r"(.+?)(?:@([0-9a-f]{16}))?")


def load(text: str, folder: Path | None = None) -> str:
    """Imports the files, joined by `:`, and returns their absolute paths, each with `@` and the hash of its content.

    Relative paths start at `folder`, by default the current one. Raises ConfigError for a file that can't be imported
    or whose content is not that of the hash.
    """
    return os.pathsep.join(_load(part, folder or Path()) for part in text.split(os.pathsep) if part)


def _load(text: str, folder: Path) -> str:
    found = NAMED.fullmatch(text)
    assert found is not None
    path = (folder / expanded(found[1], "plugins")).resolve()
    try:
        code = path.read_bytes()
    except OSError as fault:
        raise ConfigError(f"plugins={path}: {fault.strerror}: give the path of a Python file") from None
    content = hashlib.sha256(code).hexdigest()[:16]
    if found[2] not in (None, content):
        raise ConfigError(
            f"plugins={path} has changed since this was planned: restore it, or give plugins={path} for new runs"
        )
    if MODULE + content not in sys.modules:
        _register(path, code, MODULE + content)
    return f"{path}@{content}"


def _register(path: Path, code: bytes, name: str) -> None:
    """Executes the file as a module, and makes Hydra and the config's checks know the choices that it registers."""
    before = {title: dict(registry.choices) for title, registry in axes(Config).items()}
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = str(path)  # Where documentation of fields is read from.
    try:
        exec(compile(code, path, "exec"), vars(module))
        added = {title: registry.choices.keys() - before[title] for title, registry in axes(Config).items()}
        if not any(added.values()):
            raise ConfigError("it registers no choice: begin a class with @ATTENTION.register, @LOSS.register, ...")
        _rebuild()
    except Exception as fault:
        del sys.modules[name]
        for title, registry in axes(Config).items():
            registry.choices.clear()
            registry.choices.update(before[title])
        _rebuild()
        at = [frame.lineno for frame in traceback.extract_tb(fault.__traceback__) if frame.filename == str(path)]
        place = f"{path}, line {at[-1]}" if at else str(path)
        kind = "" if isinstance(fault, ConfigError) else f"{type(fault).__name__}: "
        raise ConfigError(f"plugins={place}: {kind}{fault}") from None
    for title, names in added.items():
        for each in names:
            _store(title, each, axes(Config)[title].choices[each])


def _rebuild() -> None:
    """Builds the validator of the config again, with the choices of now."""
    from pydantic.dataclasses import rebuild_dataclass

    rebuild_dataclass(Config, force=True)  # type: ignore[arg-type]
    axis._adapter.cache_clear()  # type: ignore[attr-defined]


def _store(title: str, name: str, choice: type) -> None:
    """Gives Hydra the defaults of a choice, as the files in conf/ have them."""
    from hydra.core.config_store import ConfigStore

    shared = shared_fields(title)
    values: Mapping[str, object] = {
        field.name: list(default) if isinstance(default := default_of(field), tuple) else default
        for field in dataclasses.fields(choice)
        if field.name not in shared
    }
    PLUGGED[f"{title}/{name}"] = values
    ConfigStore.instance().store(group=title, name=name, node=dict(values))
