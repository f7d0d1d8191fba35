"""Finds the files that a user brings to a command: configs by path, a folder of configs, and plugins.

`experiment=./mine.yaml` names a file anywhere. STABILAB_CONF names a folder with further choices, such as
`model/tiny.yaml` or `experiment/mine.yaml`. An experiment of one's own can set `plugins`, relative to its file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from conf.axis import ConfigError
from conf.paths import expanded
from train.config import choices as groups
from train.config.plugins import load

FILE = re.compile(r"([a-z_]+)=(['\"]?)(.+\.yaml)\2")
PLUGINS = re.compile(r"plugins=(['\"]?)(?!null$)(.+)\1")
PLAIN = re.compile(r"[A-Za-z0-9_./@:+-]+")


def resolved(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides with absolute paths and the hashes of plugins, and loads these.

    The plugins of an experiment's file become an override. Raises ConfigError for a file that can't be used.
    """
    found, of_file = [], ""
    for text in overrides:
        if (by_path := FILE.fullmatch(text)) and by_path[1] in groups.choices():
            given = _unquoted(by_path)
            path = expanded(given, by_path[1]).resolve()
            if not path.is_file():
                raise ConfigError(f"{by_path[1]}={given}: no such file")
            text = f"{by_path[1]}={_quoted(path)}"
            of_file = of_file or _plugins_of(path)
        elif plugins := PLUGINS.fullmatch(text):
            text = f"plugins={_quoted(load(_unquoted(plugins, 1)))}"
        found.append(text)
    if of_file and not any(text.startswith("plugins=") for text in found):
        found.append(f"plugins={_quoted(of_file)}")
    return found


def for_hydra(overrides: Sequence[str]) -> list[str]:
    """Returns resolved overrides in the form in which Hydra finds the files: relative to a group's folder in conf/."""
    found = []
    for text in overrides:
        if by_path := FILE.fullmatch(text):
            text = f"{by_path[1]}={_quoted(from_conf(by_path[1], _unquoted(by_path)))}"
        found.append(text)
    _, *own = groups.folders()
    for folder in own:
        _check(folder)
        found.append(f"hydra.searchpath=['file://{folder}']")
    return found


def from_conf(group: str, path: str | Path) -> str:
    """Returns the path of a config relative to its group's folder in conf/, without .yaml, as Hydra names it."""
    return os.path.relpath(str(path).removesuffix(".yaml"), (groups.CONF / group).resolve())


def path_of(override: str) -> Path | None:
    """Returns the path that a resolved override names a config by, or None if it names it otherwise."""
    by_path = FILE.fullmatch(override)
    return Path(_unquoted(by_path)) if by_path else None


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{groups.OWN}={folder} is not a folder: give one with a folder per group, such as model/")
    for path in folder.glob("**/*.yaml"):
        if (groups.CONF / path.relative_to(folder)).exists():
            raise ConfigError(f"{path} has the name of a shipped config: choose another")


def _plugins_of(path: Path) -> str:
    """Returns the plugins that a file of configs sets, loaded, or an empty string."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return ""  # Composing says what is wrong with it.
    plugins = values.get("plugins") if isinstance(values, dict) else None
    return load(plugins, path.parent) if isinstance(plugins, str) else ""


def _unquoted(found: re.Match[str], quote: int = 2) -> str:
    """Returns the value of a match, which follows the group with its quote, if any, as `_quoted` got it."""
    mark, text = found[quote], found[quote + 1]
    return text.replace(f"\\{mark}", mark) if mark else text


def _quoted(value: object) -> str:
    """Quotes a value for Hydra if it has characters that its grammar reserves."""
    text = str(value)
    return text if PLAIN.fullmatch(text) else "'" + text.replace("'", r"\'") + "'"
