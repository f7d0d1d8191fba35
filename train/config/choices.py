"""The config groups and their choices, read from conf/, from a user's folder of configs, and from plugins."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import conf

CONF = Path(conf.__file__).parent

GLOBAL, HEADER = ("experiment", "ladder", "scale"), "# @package _global_"
"""Groups whose files set keys of the whole config, and the first line of such a file."""

OWN = "STABILAB_CONF"
"""The environment variable that names a user's folder of configs, with a folder per group as in conf/."""

REQUIRED = "???"
"""OmegaConf's marker for a mandatory value."""

PLUGGED: dict[str, Mapping[str, Any]] = {}
"""The defaults of the choices that plugins have registered, by `group/name`."""


def folders() -> list[Path]:
    """Returns conf/ and the user's folder of configs, if there is one."""
    own = os.environ.get(OWN)
    return [CONF, *([Path(own).expanduser().resolve()] if own else [])]


def choices() -> dict[str, list[str]]:
    """Returns the choices of each config group, from the files in conf/ and what users add to them."""
    groups: dict[str, list[str]] = {}
    names = [path.relative_to(folder).with_suffix("") for folder in folders() for path in folder.glob("**/*.yaml")]
    for name in sorted({*names, *map(Path, PLUGGED)}):
        if name.parent != Path():
            groups.setdefault(name.parent.as_posix(), []).append(name.name)
    return groups


def file(name: str) -> Path:
    """Returns the file of a choice, `group/name`; the one that conf/ would have if there is none."""
    paths = [folder / f"{name}.yaml" for folder in folders()]
    return next((path for path in paths if path.is_file()), paths[0])


@cache
def experiments() -> Sequence[str]:
    """Returns the names of the shipped experiments. An experiment has the name of the finding that it tests."""
    return sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@cache
def default_choices() -> Mapping[str, str]:
    """Returns the default choice of each group, from conf/config.yaml."""
    import yaml

    entries = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]  # Names alone: no need of OmegaConf.
    return {k: v for entry in entries if isinstance(entry, dict) for k, v in entry.items()}


@cache
def default_fields() -> Mapping[str, Any]:
    """Returns the defaults of the fields that no axis owns, from conf/config.yaml and the default scale."""
    values = read("config") | read(f"scale/{default_choices()['scale']}")
    return {k: v for k, v in values.items() if k != "defaults"}


@cache
def size(name: str) -> Mapping[str, Any] | None:
    """Returns the fields of a model size in conf/model/, or None if there is no size of that name."""
    plain = re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name)
    return read(f"model/{name}") if plain and (CONF / "model" / f"{name}.yaml").is_file() else None


def comment(name: str) -> str:
    """Returns the comment at the top of a file in conf/."""
    lines = file(name).read_text().removeprefix(HEADER).strip().splitlines()
    return " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))


def shared_fields(axis: str) -> dict[str, Any]:
    """Returns the fields that conf/config.yaml sets for all choices of an axis."""
    fields = default_fields().get(axis, {})
    return dict(fields) if isinstance(fields, dict) else {}


def read(name: str) -> dict[str, Any]:
    """Returns the values of a choice, parsed by OmegaConf as in Hydra: PyYAML would read 1e-4 as a string."""
    if name in PLUGGED:
        return dict(PLUGGED[name])
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.load(file(name)))
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def default_of(field: Any) -> Any:
    """Returns the default of a field of a choice's dataclass, or REQUIRED."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return REQUIRED if field.default_factory is dataclasses.MISSING else field.default_factory()
