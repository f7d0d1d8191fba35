"""Turns errors of Hydra, OmegaConf and YAML into one line: the field, the value, and what would work."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from conf.axis import ConfigError
from conf.paths import shown
from train.config import choices as groups
from train.config.choices import GLOBAL, HEADER, choices, default_choices
from train.config.keys import near_key
from train.config.own import from_conf, path_of


@contextmanager
def composing(overrides: Iterable[str]) -> Iterator[None]:
    """Turns any error that composing doesn't foresee into one line, for instance a library's RecursionError."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        given = " ".join(overrides)
        given = given if len(given) < 200 else f"{given[:200]}..."
        raise ConfigError(
            f"can't compose {given}: {type(error).__name__}: {error}: correct or leave out one"
        ) from error


def yaml_fault(error: Exception, path: Path | None = None, overrides: Sequence[str] = ()) -> ConfigError:
    """Returns the error for a YAML file that can't be read: which file, which line, and why.

    Without `path` it is one that the overrides name, or one in conf/ or in the user's folder of configs.
    """
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        name = path or shown(Path(mark.name))
        return ConfigError(f"{name}, line {mark.line + 1}: {getattr(error, 'problem', error)}: correct the YAML")
    found = [file for override in overrides if (file := path_of(override))]
    found += [file for folder in groups.folders() for file in sorted(folder.glob("**/*.yaml"))]
    name = path or shown(next((file for file in found if not _is_text(file)), groups.CONF))
    return ConfigError(f"{name}: {' '.join(str(error).split())}: save it as YAML in UTF-8")


def _is_text(path: Path) -> bool:
    try:
        yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        return False
    except yaml.YAMLError:
        pass
    return True


def hydra_fault(error: Exception, overrides: Sequence[str], chosen: Mapping[str, str] | None = None) -> ConfigError:
    """Returns the error for an unknown key, an unknown choice, a malformed override or a bad file in conf/.

    `chosen` has the choice of each axis that none of the overrides sets. By default these are the default choices.
    """
    chosen = {**default_choices(), **(chosen or {}), **dict(map(_split, overrides))}
    text = " ".join(f"{error} {error.__cause__ or ''}".split())
    for override in overrides:
        if not _readable(override):
            return unreadable(override)
        message = (
            _unknown_choice(override, error, text)
            or _mapping_for_a_list(override, text, len(overrides) == 1)
            or _unknown_key(override, text, chosen)
        )
        if message:
            return ConfigError(message)
    return ConfigError(_fault_of_a_file(text, overrides))


def unreadable(override: str) -> ConfigError:
    """Returns the error for an override that is not in Hydra's grammar."""
    return ConfigError(f"can't read the override {override!r}: write key=value, quote values with special characters")


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def _unknown_choice(override: str, error: Exception, text: str) -> str | None:
    key, value = _split(override)
    group, known = key.partition("@")[0], choices()
    # For a number, a list or null as choice, Hydra raises a plain Python error.
    refused = f"'{group}/{value}'" in text or type(error) in (TypeError, ValueError)
    # A choice may be in a subfolder, as in experiment=paper/qk_norm.
    exists = groups.file(f"{group}/{value}").exists() or value.strip("'").endswith(".yaml")
    if refused and group in known and not exists:
        return str(groups.not_a_choice(group, value, known[group]))
    return None


def _mapping_for_a_list(override: str, text: str, alone: bool) -> str | None:
    key, _ = _split(override)
    named = override in text or alone
    if "Cannot merge DictConfig with ListConfig" in text and named and key.partition("@")[0] not in choices():
        return f"{override} is a mapping, but the field is a list: use {key}=[a,b]"
    return None


def _unknown_key(override: str, text: str, chosen: Mapping[str, str]) -> str | None:
    key, _ = _split(override)
    where = re.search(r"full_key: (\S+)", text)
    named = f"'{key}'" in text or (where is not None and f"{key}.".startswith(f"{where[1]}."))
    if named and ("not in struct" in text or "Could not override" in text):
        inner = where[1] if where is not None and where[1].startswith(f"{key}.") else key
        return f"unknown key {inner}: {near_key(inner, chosen)}"
    return None


def _fault_of_a_file(text: str, overrides: Sequence[str]) -> str:
    """Returns the message for an error that no override causes: a bad interpolation, or a bad file in conf/."""
    if "no viable alternative" in text or "token recognition" in text:
        return f"an interpolation can't be read ({text}): write ${{key}}, or quote the value"
    if several := re.search(r"Ambiguous value for argument '([^=']+)=([^']*)'", text):
        group, value = several.groups()
        instead = "name the sizes, such as model=mini-w32-d2,mini-w64-d2" if group == "ladder" else "give one value"
        return f"{group}={value} has several values where one is read: {instead}"
    own = [path for group, value in map(_split, overrides) if (path := path_of(f"{group}={value}")) is not None]
    if own and (other := re.search(r"Could not load '?(experiment|scale|ladder)/([^'. ]+)", text)):
        group, value = other.groups()
        known = f"{shown(own[0])} names {group}/{value}, which conf/ doesn't have"
        return f"{known}: put both files into {group}/ of a folder, and give that folder as --conf FOLDER"
    if missing := re.search(r"Could not find '(\w+)/([^']*)'", text):  # from the defaults list of a file
        group, value = missing.groups()
        return str(groups.not_a_choice(group, value, choices().get(group, [])))
    for end in (" Available options", " Config search path:", " full_key:"):
        text = text.partition(end)[0]
    text, files = text.rstrip("."), []
    for group, value in map(_split, overrides):
        path = path_of(f"{group}={value}")
        if path is not None:
            text = text.replace(f"{group}/{from_conf(group, path)}", shown(path))
        if group in GLOBAL:
            files.append(shown(path or groups.file(f"{group}/{value}")))
    if files:
        return f"{text}: correct {' or '.join(files)}, which must begin with {HEADER}"
    return f"{text}: see stabilab --help all"


def _readable(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return bool(OverridesParser.create().parse_override(override).key_or_group)
    except HydraException:
        return False
