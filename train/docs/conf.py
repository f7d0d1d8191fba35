"""Generates conf/<axis>/<choice>.yaml for every choice from the defaults of its dataclass."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from conf.axis import axes
from train.config.choices import CONF, default_of, shared_fields
from train.config.schema import Config


def files() -> dict[Path, str]:
    """Returns the text of conf/<axis>/<choice>.yaml for each registered choice."""
    return {
        CONF / axis / f"{name}.yaml": text(choice, without=shared_fields(axis))
        for axis, registry in axes(Config).items()
        for name, choice in registry.choices.items()
    }


def text(choice: type, without: dict[str, Any]) -> str:
    """Returns the YAML of a choice, without the fields that its axis shares, which are in conf/config.yaml."""
    lines = [f"# Written by python -m train.docs from the defaults of {choice.__module__}.{choice.__name__}."]
    fields = [field for field in dataclasses.fields(choice) if field.name not in without]
    return "\n".join([*lines, *(f"{field.name}: {_yaml(default_of(field))}" for field in fields)]) + "\n"


def _yaml(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()
