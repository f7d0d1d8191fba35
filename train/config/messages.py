"""One line for each fault that Hydra, OmegaConf or YAML finds: the field, the value, and what would work."""

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
    """One line for a YAML file that can't be read: which, where, why."""
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
    """One line for what Hydra refuses: an unknown key, an unknown choice, a malformed override."""
    text = " ".join(f"{error} {error.__cause__ or ''}".split())
    known = choices()
    for override in overrides:
        if not _readable(override):
            return ConfigError(
                f"can't read the override {override!r}: write key=value, quote values with special characters"
            )
        key, _, value = override.lstrip("+~").partition("=")
        group = key.partition("@")[0]
        # Hydra trips over a number, a list or null for a choice, with a plain Python error.
        refused = f"'{group}/{value}'" in text or type(error) in (TypeError, ValueError)
        # A choice may lie in a folder of its own: experiment=paper/qk_norm.
        there = (groups.CONF / group / f"{value}.yaml").exists()
        if refused and group in known and not there:
            return ConfigError(f"{group}={value} is not a choice: {near(value, known[group])}")
        alone = override in text or len(overrides) == 1
        if "Cannot merge DictConfig with ListConfig" in text and alone and group not in known:
            return ConfigError(f"{override} is a mapping where a list should be: {key}=[a,b]")
        where = re.search(r"full_key: (\S+)", text)
        named = f"'{key}'" in text or (where is not None and f"{key}.".startswith(f"{where[1]}."))
        if named and ("not in struct" in text or "Could not override" in text):
            inner = where[1] if where is not None and where[1].startswith(f"{key}.") else key
            return ConfigError(f"unknown key {inner}: {_near_key(inner)}")
    if "no viable alternative" in text or "token recognition" in text:
        return ConfigError(f"an interpolation can't be read ({text}): write ${{key}}, or quote the value")
    if found := re.search(r"Could not find '(\w+)/([^']*)'", text):  # in a file's own list of defaults
        group, value = found.groups()
        return ConfigError(f"{group}={value} is not a choice: {near(value, known.get(group, []))}")
    text = text.partition(" Available options")[0].partition(" full_key:")[0]
    files = [o.lstrip("+").replace("=", "/") for o in overrides if o.lstrip("+").partition("=")[0] in GLOBAL]
    if files:
        return ConfigError(f"{text}: correct conf/{' or conf/'.join(files)}.yaml, which begins with {HEADER}")
    return ConfigError(f"{text}: see python -m train --help")


def _readable(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return bool(OverridesParser.create().parse_override(override).key_or_group)
    except HydraException:
        return False


def _near_key(key: str) -> str:
    """The choices that have this key, the keys that end in the same name, or the closest one."""
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
    """Every key that some config has, in the order of the config; a field of an axis is `axis.field`."""
    found = axes(Config)
    keys: dict[str, None] = {}
    for name in Config.__dataclass_fields__:
        keys[name] = None
        parts = [*found[name].choices.values()] if name in found else [SizeConfig] if name == "model" else []
        keys |= {f"{name}.{field}": None for part in parts for field in part.__dataclass_fields__}
    return keys
