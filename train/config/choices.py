"""The config groups of conf/ and their choices, read from its folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import yaml

import conf

CONF = Path(conf.__file__).parent

GLOBAL, HEADER = ("experiment", "ladder", "scale"), "# @package _global_"
"""Groups whose files set keys of the whole config, and how such a file begins."""


@cache
def default_choices() -> Mapping[str, str]:
    """The choice of each group that conf/config.yaml names. Read once: every run's name asks for it."""
    entries = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    return {k: v for entry in entries if isinstance(entry, dict) for k, v in entry.items()}


@cache
def experiments() -> Sequence[str]:
    """Names of the experiment files, which are those of the findings that they test."""
    return choices()["experiment"]


def choices() -> dict[str, list[str]]:
    """Config groups and their choices, from the folders of conf/."""
    groups: dict[str, list[str]] = {}
    for path in sorted(CONF.glob("**/*.yaml")):
        group = path.parent.relative_to(CONF).as_posix()
        if group != ".":
            groups.setdefault(group, []).append(path.stem)
    return groups
