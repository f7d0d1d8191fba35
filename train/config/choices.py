"""The config groups and their choices, read from conf/, from a user's folder of configs, and from plugins."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import conf
from conf.paths import expanded, shown

if TYPE_CHECKING:
    from conf.axis import ConfigError

CONF = Path(conf.__file__).parent

GLOBAL, HEADER = ("experiment", "ladder", "scale"), "# @package _global_"
"""Groups whose files set keys of the whole config, and the first line of such a file."""

OTHER_BASE = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?|[-+]?0[0-7_]+")
"""What YAML 1.1 reads as a number, but not as the one that is written: 4:00:00 to base 60, 010 to base 8."""
NOT_TEXT = re.compile(r"[-+.]?\d[\d_.]*([eE][-+]?\d+)?|yes|no|on|off|true|false|null|~", re.IGNORECASE)
"""A key that YAML does not keep as text: the name of an arm, on, would be shown as True."""
OWN = "STABILAB_CONF"
"""The environment variable that names a user's folder of configs, with a folder per group as in conf/."""

YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's loader if PyYAML has it. The pure Python loader takes 5 ms per config, almost a minute for 10,000 runs."""

REQUIRED = "???"
"""OmegaConf's marker for a mandatory value."""

PLUGGED: dict[str, Mapping[str, Any]] = {}
"""The defaults of the choices that plugins have registered, by `group/name`."""


def folders() -> list[Path]:
    """Returns conf/ and the user's folder of configs, if there is one."""
    own = os.environ.get(OWN)
    return [CONF, *([expanded(own, OWN).resolve()] if own else [])]


def choices() -> dict[str, list[str]]:
    """Returns the choices of each config group, from the files in conf/ and what users add to them."""
    groups: dict[str, list[str]] = {}
    names = [path.relative_to(folder).with_suffix("") for folder in folders() for path in folder.glob("**/*.yaml")]
    for name in sorted({*names, *map(Path, PLUGGED)}):
        if name.parent != Path():
            groups.setdefault(name.parent.as_posix(), []).append(name.name)
    return groups


def not_a_choice(group: str, value: str, known: Sequence[str]) -> ConfigError:
    """Returns the error for a choice that a group does not have."""
    from conf.axis import ConfigError, near  # Completion does without pydantic.

    return ConfigError(f"{group}={value} is not a choice: {near(value, list(known))}")


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

    values = yaml.safe_load((CONF / "config.yaml").read_text(encoding="utf-8"))  # Names alone: no need of OmegaConf.
    return {k: v for entry in values["defaults"] if isinstance(entry, dict) for k, v in entry.items()}


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
    lines = file(name).read_text(encoding="utf-8").removeprefix(HEADER).strip().splitlines()
    return " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))


def shared_fields(axis: str) -> dict[str, Any]:
    """Returns the fields that conf/config.yaml sets for all choices of an axis."""
    fields = default_fields().get(axis, {})
    return dict(fields) if isinstance(fields, dict) else {}


def read(name: str) -> dict[str, Any]:
    """Returns the values of a file in conf/, parsed by OmegaConf as in Hydra: PyYAML would read 1e-4 as a string.

    Raises ConfigError for a value that YAML retypes.
    """
    from omegaconf import OmegaConf

    if name in PLUGGED:
        return dict(PLUGGED[name])
    path = file(name)
    refuse_retyped(path)
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def default_of(field: Any) -> Any:
    """Returns the default of a field of a choice's dataclass, or REQUIRED."""
    if field.default is not dataclasses.MISSING:
        return field.default
    return REQUIRED if field.default_factory is dataclasses.MISSING else field.default_factory()


def refuse_retyped(path: Path) -> None:
    """Raises ConfigError for an unquoted value or key that YAML turns into something else without an error.

    Also reads the files that the file starts from.
    """
    if not path.is_file():
        return
    _refuse_retyped(path, path.stat().st_mtime_ns)
    for started_from in re.findall(r"^ *- *(/?\w[\w./-]*) *$", path.read_text(encoding="utf-8"), re.MULTILINE):
        if started_from != "_self_":
            beside = path.parent / f"{started_from}.yaml"
            refuse_retyped(file(started_from.strip("/")) if started_from.startswith("/") else beside)


@cache
def _refuse_retyped(path: Path, changed: int) -> None:
    pending = [node for node in [yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)] if node]
    while pending:
        node = pending.pop()
        keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        if isinstance(node, yaml.ScalarNode):
            _require_text(node, OTHER_BASE, path)
        else:
            pending += [value for _, value in node.value] if keys else node.value
        for key in keys:
            _require_text(key, OTHER_BASE, path)
            _require_text(key, NOT_TEXT, path)


def _require_text(node: Any, retyped: re.Pattern[str], path: Path) -> None:
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    if plain and retyped.fullmatch(node.value):
        from conf.axis import ConfigError  # Completion does without pydantic.

        read = yaml.safe_load(node.value)
        where = f"{shown(path)}, line {node.start_mark.line + 1}"
        raise ConfigError(f"{where}: YAML reads {node.value} as {read}: write '{node.value}', in quotes")
