"""The config groups of conf/ and their choices, read from its folders."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import conf

CONF = Path(conf.__file__).parent

GLOBAL, HEADER = ("experiment", "ladder", "scale"), "# @package _global_"
"""Groups whose files set keys of the whole config, and the first line of such a file."""


def choices() -> dict[str, list[str]]:
    """Returns the choices of each config group, from the files in conf/."""
    groups: dict[str, list[str]] = {}
    for path in sorted(CONF.glob("**/*.yaml")):
        group = path.parent.relative_to(CONF).as_posix()
        if group != ".":
            groups.setdefault(group, []).append(path.stem)
    return groups


@cache
def experiments() -> Sequence[str]:
    """Returns the names of the experiment files. An experiment has the name of the finding that it tests."""
    return choices()["experiment"]


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
    lines = (CONF / f"{name}.yaml").read_text().removeprefix(HEADER).strip().splitlines()
    return " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))


def shared_fields(axis: str) -> dict[str, Any]:
    """Returns the fields that conf/config.yaml sets for all choices of an axis."""
    fields = default_fields().get(axis, {})
    return dict(fields) if isinstance(fields, dict) else {}


def read(name: str) -> dict[str, Any]:
    """Returns the values of a file in conf/, parsed by OmegaConf as in Hydra: PyYAML would read 1e-4 as a string."""
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}
