"""The keys that a config can have, read from the files in conf/, and what a mistyped key may have been meant to be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from train.config.choices import (
    CONF,
    GLOBAL,
    choices,
    default_choices,
    default_fields,
    file,
    not_a_choice,
    read,
    shared_fields,
)

NOT_OF_RUNS = ("hydra", "arms", "claim")
"""Keys of an experiment's file that concern its sweep and no single run."""
WORDS = ("force", "show")
"""Words of a command that are written like overrides."""


def refuse_unknown(overrides: Sequence[str]) -> None:
    """Raises ConfigError for a plain misspelt choice or key, such as attention=softmx, before the libraries are loaded.

    Composing finds all other faults, and these in a config with plugins, which may register the choice.
    """
    if any(text.partition("=")[0] == "plugins" or text.endswith((".yaml", ".yaml'")) for text in overrides):
        return
    if any(
        text.startswith("experiment=") and not file(text.replace("=", "/")).is_relative_to(CONF) for text in overrides
    ):
        return  # A user's own, which may set plugins.
    known, chosen = choices(), dict(default_choices())
    for group, value in (text.split("=", 1) for text in overrides if "=" in text):
        for choice in value.split(",") if group in known else ():
            if choice != "null" and re.fullmatch(r"[\w./-]+", choice) and not file(f"{group}/{choice}").exists():
                raise not_a_choice(group, choice, known[group])
            chosen[group] = choice
    for text in overrides:
        key, equals, _ = text.partition("=")
        if equals and re.fullmatch(r"\w+(\.\w+)*", key) and not _is_key(key, chosen, known):
            from conf.axis import ConfigError  # Completion does without pydantic.

            raise ConfigError(f"unknown key {key}: {near_key(key, chosen)}")


def _is_key(key: str, chosen: Mapping[str, str], known: Mapping[str, list[str]]) -> bool:
    """Returns whether a key is one of the config's, or a field of the launcher, which needs no prefix beside it.

    Below a field that takes a mapping, any is.
    """
    first, dot, below = key.partition(".")
    own, field = default_fields().get(first), below.partition(".")[0]
    if first in NOT_OF_RUNS or first in WORDS:
        return True
    if dot and first in axes():
        # The chosen one first: its file is one of many.
        owners = dict.fromkeys([chosen[first], *known[first]]) if chosen[first] in known[first] else known[first]
        return any(field in ("name", *(name.partition(".")[0] for name in fields(first, choice))) for choice in owners)
    if dot and isinstance(own, Mapping):
        return field in own
    if first in default_fields() or first in known:
        return True
    return chosen["launcher"] in known["launcher"] and first in fields("launcher", chosen["launcher"])


def axes() -> list[str]:
    """Returns the config groups that are axes, in the order of conf/config.yaml."""
    known = choices()
    return [group for group in default_choices() if group in known and group not in GLOBAL]


def fields(axis: str, choice: str) -> list[str]:
    """Returns the fields of a choice; those of a nested mapping are `field.inner`."""
    values = {**shared_fields(axis), **read(f"{axis}/{choice}")}
    return [field for field in _flat(values) if field != "name"]


def all_keys() -> dict[str, None]:
    """Returns every key that a config can have; a field of an axis is `axis.field`."""
    own = {name: value for name, value in default_fields().items() if name != "hydra"}
    known, keys = choices(), dict.fromkeys([*own, *_flat(own), *axes()])
    for axis in axes():
        keys |= {f"{axis}.{field}": None for choice in known[axis] for field in ["name", *fields(axis, choice)]}
    return keys


def near_key(key: str, chosen: Mapping[str, str]) -> str:
    """Suggests the choices that have this field, or else the closest fields of the chosen one, or the closest key."""
    axis, _, field = key.partition(".")
    of_choice = {choice: fields(axis, choice) for choice in choices()[axis]} if axis in axes() else {}
    owners = [choice for choice, found in of_choice.items() if field in found]
    if owners:
        return f"only {axis}={' or '.join(owners)} has it"
    of_chosen = of_choice.get(chosen.get(axis, ""), [])
    if close := difflib.get_close_matches(field, of_chosen, n=3):
        ratios = [difflib.SequenceMatcher(None, name, field).ratio() for name in close]
        equal = [name for name, ratio in zip(close, ratios, strict=True) if ratio > ratios[0] - 0.05]
        return f"did you mean {' or '.join(f'{axis}.{name}' for name in sorted(equal))}?"
    known = list(all_keys())
    last = {k.rpartition(".")[2] for k in known}
    wanted = key.rpartition(".")[2]
    if wanted not in last:
        # A key without a dot may be a misspelt field of any axis.
        wanted = next(iter(difflib.get_close_matches(key, [*known, *(() if "." in key else last)], n=1)), "")
    suggested = [k for k in known if wanted in (k, k.rpartition(".")[2])]
    return f"did you mean {' or '.join(suggested)}?" if suggested else "see stabilab --help all"


def _flat(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        nested = isinstance(value, Mapping) and value
        yield from (f"{name}.{below}" for below in _flat(value)) if nested else [name]
