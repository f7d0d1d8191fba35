"""Turns what Hydra, OmegaConf and YAML refuse into one line: the field, the value, and what would work."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from conf.axis import ConfigError, axes, near
from models.size import SizeConfig
from train.config import choices as groups
from train.config.choices import GLOBAL, HEADER, choices
from train.config.schema import Config


def yaml_fault(error: Exception, path: Path | None = None) -> ConfigError:
    """Returns one line for a YAML file that can't be read: which file, where, and why."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        name = mark.name if path is None else path
        return ConfigError(f"{name}, line {mark.line + 1}: {getattr(error, 'problem', error)}: correct the YAML")
    broken = path or next((p for p in sorted(groups.CONF.glob("**/*.yaml")) if not _is_text(p)), groups.CONF)
    return ConfigError(f"{broken}: {error}: it has to be YAML in UTF-8")


def _is_text(path: Path) -> bool:
    try:
        yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        return False
    except yaml.YAMLError:
        pass
    return True


def hydra_fault(error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Returns one line for what Hydra refuses: an unknown key, an unknown choice, a malformed override, a bad file."""
    text = " ".join(f"{error} {error.__cause__ or ''}".split())
    for override in overrides:
        if not _readable(override):
            return unreadable(override)
        if found := _unknown_choice(override, error, text) or _wrong_kind(override, text, len(overrides) == 1):
            return ConfigError(found)
        if found := _unknown_key(override, text):
            return ConfigError(found)
    return ConfigError(_fault_of_a_file(text, overrides))


def unreadable(override: str) -> ConfigError:
    """Returns one line for an override that isn't in Hydra's grammar."""
    return ConfigError(f"can't read the override {override!r}: write key=value, quote values with special characters")


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def _unknown_choice(override: str, error: Exception, text: str) -> str | None:
    key, value = _split(override)
    group, known = key.partition("@")[0], choices()
    # Hydra trips over a number, a list or null for a choice, with a plain Python error.
    refused = f"'{group}/{value}'" in text or type(error) in (TypeError, ValueError)
    # A choice may lie in a folder of its own: experiment=paper/qk_norm.
    there = (groups.CONF / group / f"{value}.yaml").exists()
    if refused and group in known and not there:
        return f"{group}={value} is not a choice: {near(value, known[group])}"
    return None


def _wrong_kind(override: str, text: str, alone: bool) -> str | None:
    key, _ = _split(override)
    named = override in text or alone
    if "Cannot merge DictConfig with ListConfig" in text and named and key.partition("@")[0] not in choices():
        return f"{override} is a mapping where a list should be: {key}=[a,b]"
    return None


def _unknown_key(override: str, text: str) -> str | None:
    key, _ = _split(override)
    where = re.search(r"full_key: (\S+)", text)
    named = f"'{key}'" in text or (where is not None and f"{key}.".startswith(f"{where[1]}."))
    if named and ("not in struct" in text or "Could not override" in text):
        inner = where[1] if where is not None and where[1].startswith(f"{key}.") else key
        return f"unknown key {inner}: {_near_key(inner)}"
    return None


def _fault_of_a_file(text: str, overrides: Sequence[str]) -> str:
    """What no override is to blame for: an interpolation, or what a file of conf/ says."""
    if "no viable alternative" in text or "token recognition" in text:
        return f"an interpolation can't be read ({text}): write ${{key}}, or quote the value"
    if found := re.search(r"Could not find '(\w+)/([^']*)'", text):  # in a file's own list of defaults
        group, value = found.groups()
        return f"{group}={value} is not a choice: {near(value, choices().get(group, []))}"
    text = text.partition(" Available options")[0].partition(" full_key:")[0]
    files = [o.lstrip("+").replace("=", "/") for o in overrides if o.lstrip("+").partition("=")[0] in GLOBAL]
    if files:
        return f"{text}: correct conf/{' or conf/'.join(files)}.yaml, which begins with {HEADER}"
    return f"{text}: see python -m train --help"


def _readable(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return bool(OverridesParser.create().parse_override(override).key_or_group)
    except HydraException:
        return False


def _near_key(key: str) -> str:
    """Says which choices have this key, else which keys end in the same name, else which key is closest."""
    axis, _, field = key.partition(".")
    configs = axes(Config)[axis].choices if axis in axes(Config) else {}
    owners = [choice for choice, config in configs.items() if field in config.__dataclass_fields__]
    if owners:
        return f"only {axis}={' or '.join(owners)} has it"
    known = list(all_keys())
    last = {k.rpartition(".")[2] for k in known}
    # The same name elsewhere, else the closest; without a dot, that of a field of any axis.
    wanted = key.rpartition(".")[2]
    if wanted not in last:
        wanted = next(iter(difflib.get_close_matches(key, [*known, *(() if "." in key else last)], n=1)), "")
    found = [k for k in known if wanted in (k, k.rpartition(".")[2])]
    return f"did you mean {' or '.join(found)}?" if found else "see python -m train --help"


def all_keys() -> dict[str, None]:
    """Returns every key that some config has, in the order of the config; a field of an axis is `axis.field`."""
    found = axes(Config)
    keys: dict[str, None] = {}
    for name in Config.__dataclass_fields__:
        keys[name] = None
        parts = [*found[name].choices.values()] if name in found else [SizeConfig] if name == "model" else []
        keys |= {f"{name}.{field}": None for part in parts for field in part.__dataclass_fields__}
    return keys
