"""The config groups of conf/ and their choices, read from its folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import conf

CONF = Path(conf.__file__).parent

GLOBAL, HEADER = ("experiment", "ladder", "scale"), "# @package _global_"
"""Groups whose files set keys of the whole config, and how such a file begins."""


def choices() -> dict[str, list[str]]:
    """Returns the config groups and their choices, from the folders of conf/."""
    groups: dict[str, list[str]] = {}
    for path in sorted(CONF.glob("**/*.yaml")):
        group = path.parent.relative_to(CONF).as_posix()
        if group != ".":
            groups.setdefault(group, []).append(path.stem)
    return groups


@cache
def experiments() -> Sequence[str]:
    """Returns the names of the experiment files, which are those of the findings that they test."""
    return choices()["experiment"]


@cache
def default_choices() -> Mapping[str, str]:
    """Returns the choice of each group that conf/config.yaml names."""
    entries = _read("config")["defaults"]
    return {k: v for entry in entries if isinstance(entry, dict) for k, v in entry.items()}


@cache
def default_fields() -> Mapping[str, Any]:
    """Returns the plain fields of a run that no axis owns, as conf/config.yaml and the default scale set them."""
    return {
        k: v for k, v in (_read("config") | _read(f"scale/{default_choices()['scale']}")).items() if k != "defaults"
    }


@cache
def size(name: str) -> Mapping[str, Any] | None:
    """Returns the fields of a size in conf/model/; None for a name that none of them has."""
    plain = re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name)
    return _read(f"model/{name}") if plain and (CONF / "model" / f"{name}.yaml").is_file() else None


def shared_fields(axis: str) -> dict[str, Any]:
    """Returns the fields that conf/config.yaml sets for all choices of an axis."""
    found = default_fields().get(axis, {})
    return dict(found) if isinstance(found, dict) else {}


def _read(name: str) -> dict[str, Any]:
    """The plain values of a file of conf/, as Hydra reads them: PyYAML alone takes 1e-4 for text."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}
