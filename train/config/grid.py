"""Expands overrides with several values, in Hydra's grammar, into the points of a grid, and composes their configs."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from conf.axis import ConfigError, near
from train.config import choices as groups
from train.config.choices import GLOBAL, choices, default_choices, read
from train.config.compose import compose_node, from_node, from_values, refuse_arms
from train.config.messages import composing, hydra_fault, unreadable
from train.config.schema import Config

MOST_POINTS = 1_000_000
"""Most points of a grid, and most values of one key."""


def expand(overrides: Sequence[str], composer: Composer | None = None) -> list[tuple[str | None, list[str]]]:
    """Returns the arm and the overrides of every point, arm by arm; the first key varies slowest.

    A key has several values if it is written as `k=a,b`, `k=[a,b]`, `k=choice(...)`, `k=range(...)` or `k=glob(...)`.
    The chosen experiment and ladder add the keys of their hydra.sweeper.params; a ladder replaces the experiment's
    sizes. An experiment's `arms` maps the name of an arm to a mapping of overrides, to a list of such mappings whose
    grids are concatenated, or to null, which drops the arm. The override `arms=NAME: KEY=VALUE ...; NAME: ...` adds
    arms. For the same key, an arm takes precedence over the experiment's parameters, and `overrides` over both. Raises
    ConfigError for an override that can't be read. A `composer` that also composes the points saves a call of Hydra.
    """
    return expand_with_claim(overrides, composer)[0]


def expand_with_claim(
    overrides: Sequence[str], composer: Composer | None = None
) -> tuple[list[tuple[str | None, list[str]]], dict[str, Any] | None]:
    """Returns the points as `expand` does, and the `claim` of the experiment's file, or None if it states none."""
    with composing(overrides):
        written = [o for o in overrides if _key(o) == "arms"]
        overrides = [o for o in overrides if _key(o) != "arms"]
        params, arms, claim = _params_arms_and_claim(overrides, composer)
        for text in written:
            arms |= {name: [values] for name, values in written_arms(text).items()}
        for name, each in arms.items():
            if early := [key for key in ("plugins", "experiment", "ladder") for values in each if key in values]:
                raise ConfigError(
                    f"arms: {name!r} has {early[0]}, which is read before arms: give it once, on the command line or "
                    "at the top of the file"
                )
        grids: list[tuple[str | None, list[str]]] = [
            (arm, _texts(values)) for arm, each in arms.items() for values in each
        ]
        points = [(arm, point) for arm, own in grids or [(None, [])] for point in _product([*params, *own, *overrides])]
        return points, claim


def written_arms(text: str) -> dict[str, dict[str, Any]]:
    """Returns the arms that `arms=NAME: KEY=VALUE ...; NAME: ...` lists. Raises ConfigError if it can't be read."""
    example = "write 'arms=plain: ; capped: attention=softcap qk_norm=none'"
    found: dict[str, dict[str, Any]] = {}
    for part in text.partition("=")[2].split(";"):
        name, colon, words = part.partition(":")
        name = name.strip()
        try:
            pairs = [word.partition("=") for word in shlex.split(words)]
        except ValueError as error:
            raise ConfigError(f"arms: {part.strip()!r}: {error}: {example}") from None
        if not colon or not name or not all(key and equals for key, equals, _ in pairs):
            raise ConfigError(f"arms: can't read {part.strip()!r}: {example}")
        if name in found or len({key for key, _, _ in pairs}) < len(pairs):
            raise ConfigError(f"arms: {part.strip()!r} repeats {'an arm' if name in found else 'a key'}: give it once")
        found[name] = {key: value for key, _, value in pairs}
    return found


def _texts(values: Mapping[str, Any]) -> list[str]:
    """Returns values as overrides in Hydra's grammar."""
    plain = {None: "null", True: "true", False: "false"}
    return [f"{k}={plain[v] if v is None or isinstance(v, bool) else v}" for k, v in values.items()]


def _product(overrides: Sequence[str]) -> list[list[str]]:
    """Returns the overrides of every point; a later override of the same key replaces an earlier one."""
    fixed: list[str] = []
    axes: dict[str, list[str]] = {}
    for text in overrides:
        key, values = key_and_values(text)
        fixed = [f for f in fixed if f.partition("=")[0] != key]
        if values is None:
            axes.pop(key, None)
            fixed.append(text)
        else:
            axes[key] = values  # A replaced key keeps its position in the grid.
    if math.prod(map(len, axes.values())) > MOST_POINTS:
        raise ConfigError(f"the grid of {', '.join(axes)} has more than {MOST_POINTS:,} points: use fewer values")
    return [[*fixed, *point] for point in itertools.product(*axes.values())]


def compose_all(points: Sequence[Sequence[str]], composer: Composer | None = None) -> list[Config]:
    """Returns the checked config of every point. Raises ConfigError for the first that can't be used."""
    composer = composer or Composer()
    configs = []
    for point in points:
        with composing(point):
            configs.append(composer.config(point))
    return configs


def list_hint(error: ConfigError, overrides: Sequence[str]) -> ConfigError:
    """Returns the error with what to write for a list, if an override that has one is at fault.

    `key=[a,b]` lists the values of a grid, so that a field that is itself a list needs `key=[[a,b]]`.
    """
    for text in overrides:
        key, brackets, value = text.partition("=[")
        if brackets and not value.startswith("[") and f"{error}".startswith((f"{key}=", f"{key}.")):
            return ConfigError(f"{error} ({text} is a grid of several values: write {key}=[[{value}] for one list)")
    return error


class Composer:
    """Composes many configs, calling Hydra only once for each set of choices.

    Hydra takes 0.2 s to compose a config. Putting the files of choices in place and setting plain values on a composed
    one takes a few milliseconds.
    """

    def __init__(self) -> None:
        self.groups = choices()
        self.composed: dict[tuple[str, ...], DictConfig] = {}
        self.params: dict[tuple[str, ...], Any] = {}
        self.files: dict[str, dict[str, Any]] = {}
        self.templates: dict[tuple[tuple[str, ...], ...], Template] = {}

    def config(self, point: Sequence[str]) -> Config:
        """Returns the same config as `train.config.compose.compose`, and raises the same ConfigError."""
        refuse_arms(point)
        for_hydra = self._for_hydra(point)
        values = [o for o in point if o not in for_hydra]
        # Points with the same keys can share a node, because each sets all of these keys again.
        keys = tuple(_key(o) for o in values)
        if (for_hydra, keys) not in self.templates:
            node = self._swapped(for_hydra) or self.of_hydra(for_hydra).copy()
            self.templates[for_hydra, keys] = Template(node, keys)
        return self.templates[for_hydra, keys].config(values)

    def _for_hydra(self, point: Sequence[str]) -> tuple[str, ...]:
        """Returns the overrides that Hydra must apply: choices, +key, ~key, and mappings, which it merges."""
        from hydra.errors import HydraException

        try:
            merged = {o for o in point if isinstance(parsed(o)[1], dict)}
        except HydraException:
            return tuple(point)  # Hydra says what can't be read.
        needed = [o for o in point if _key(o) in self.groups or not o[0].isalpha() or o in merged]
        special = [o.lstrip("+~").partition("=")[0] for o in needed if _key(o) not in self.groups]
        if any(f"{key}.".startswith(f"{_key(o)}.") or f"{_key(o)}.".startswith(f"{key}.")
               for key in special for o in point if o not in needed):  # fmt: skip
            return tuple(point)  # A plain value sets the same key, or one above or below it, so their order matters.
        return tuple(needed)

    def of_hydra(self, overrides: tuple[str, ...]) -> DictConfig:
        """Returns what Hydra composes, without its own config, of which `params` keeps the sweeper's parameters."""
        from omegaconf import open_dict

        if not overrides:
            return _defaults(groups.CONF)
        if overrides not in self.composed:
            node = compose_node(overrides, with_hydra=True)
            self.params[overrides] = node.hydra.sweeper.get("params")
            with open_dict(node):
                del node["hydra"]
            self.composed[overrides] = node
        return self.composed[overrides]

    def _swapped(self, chosen: tuple[str, ...]) -> DictConfig | None:
        """Returns the config with the choices of axes put in place, or None if only Hydra can compose it.

        The file of a choice sets keys of its own axis alone. config.yaml comes before it; the files of scale,
        experiment and ladder come after it.
        """
        from omegaconf.errors import OmegaConfBaseException

        names = dict(o.partition("=")[::2] for o in chosen)
        if len(names) < len(chosen) or any(name not in self.groups.get(group, ()) for group, name in names.items()):
            return None
        whole = tuple(o for o in chosen if _key(o) in GLOBAL)
        if len(whole) == len(chosen):
            return None
        node = self.of_hydra(whole).copy()
        try:
            return self._with_files(node, names)
        except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, AssertionError, TypeError, ValueError):
            return None

    def _with_files(self, node: DictConfig, names: Mapping[str, str]) -> DictConfig | None:
        from omegaconf import OmegaConf, open_dict

        after = [f"{group}/{names[group]}" for group in ("experiment", "ladder") if group in names]
        if any("defaults" in self._read(file) for file in after):  # May choose another scale.
            return None
        after.insert(0, f"scale/{names.get('scale', default_choices()['scale'])}")
        for group in names.keys() - set(GLOBAL):
            file = f"{group}/{names[group]}"
            if "defaults" in self._read(file) or "@package" in _text_of(file):
                return None
            with open_dict(node):
                shared = [self._read(each).get(group, {}) for each in ("config", *after)]
                node[group] = OmegaConf.merge(shared[0], self._read(file), *shared[1:])
        return node

    def _read(self, file: str) -> dict[str, Any]:
        if file not in self.files:
            self.files[file] = read(file)
        return self.files[file]


@cache
def _defaults(conf: Path) -> DictConfig:
    """Returns what Hydra composes from a config folder without overrides. Not to be changed: all composers share it."""
    node: DictConfig = compose_node(())
    return node


def _text_of(file: str) -> str:
    return "" if file in groups.PLUGGED else groups.file(file).read_text("utf-8")


class Template:
    """Makes the configs of points that set the same keys of a composed config."""

    def __init__(self, node: DictConfig, keys: Sequence[str]) -> None:
        from omegaconf import OmegaConf

        self.node = node
        self.same: dict[str, Any] | None = None
        set_by_points = {key.partition(".")[0] for key in keys}
        # What refers to another key may change with every point; an environment variable does not.
        raw: Any = OmegaConf.to_container(node)
        self.changing = [key for key in raw if key in set_by_points or "${" in str(raw[key]).replace("${oc.env:", "")]

    def config(self, values: Sequence[str]) -> Config:
        """Returns the checked config with these overrides of the template's keys."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        for text in values:
            _set(self.node, text)
        if self.same is None:
            config = from_node(self.node)
            resolved: Any = OmegaConf.to_container(self.node, resolve=True)
            self.same = {key: value for key, value in resolved.items() if key not in self.changing}
            return config
        try:
            changed = {key: _plain(self.node[key]) for key in self.changing}
        except OmegaConfBaseException:
            return from_node(self.node)  # Says what is missing or can't be resolved.
        return from_values(self.same | changed)


def _plain(value: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value


def _set(node: DictConfig, text: str) -> None:
    """Sets a plain value. Raises ConfigError for an unknown key, with the same text as for Hydra's own error."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, value = parsed(text)
    try:
        OmegaConf.update(node, key, value, force_add=False)
    except OmegaConfBaseException as error:
        axis = node.get(key.partition(".")[0])
        chosen = {key.partition(".")[0]: axis["name"]} if isinstance(axis, DictConfig) and "name" in axis else {}
        raise hydra_fault(error, [text], chosen) from None


def _key(override: str) -> str:
    return override.partition("=")[0]


@cache
def parsed(text: str) -> tuple[str, Any]:
    """Returns the key and the value of an override in Hydra's grammar. Raises ConfigError if it can't be read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if number := re.fullmatch(r"([a-z_.]+)=(0|[1-9][0-9]*)", text):  # Most points of a large grid are seeds.
        return number[1], int(number[2])
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        raise unreadable(text) from None
    return override.key_or_group, override.value()


def key_and_values(text: str) -> tuple[str, list[str] | None]:
    """Returns the key of an override and one override per value, or None if it has a single value.

    Raises ConfigError if it can't be read, or if its glob matches no choice.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob, Override
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        raise unreadable(text) from None
    key = text.partition("=")[0]
    value = override.value()
    if isinstance(value, Glob):
        names = value.filter(choices().get(key, []))
        if not names:
            raise ConfigError(f"{text} matches no choice: {near(key, list(choices()))}")
        return key, [f"{key}={name}" for name in names]
    if override.is_sweep_override():
        return key, [f"{key}={v}" for v in _values_of_sweep(override, text)]
    if isinstance(value, list) and value:  # An empty list is one value, of a field that is a list.
        return key, [f"{key}={Override._get_value_element_as_str(v)}" for v in value]
    return key, None


def _values_of_sweep(override: Any, text: str) -> list[str]:
    """Returns the values of choice(...), range(...) and so on. Raises ConfigError if there are none or too many."""
    from hydra.errors import HydraException

    try:
        values = list(itertools.islice(override.sweep_string_iterator(), MOST_POINTS + 1))
    except (HydraException, ArithmeticError, ValueError):  # interval(...), or a step of 0
        raise ConfigError(f"{text} does not list values: use a,b or range(start,stop,step)") from None
    if not values:
        raise ConfigError(f"{text} has no values: use a range whose stop is beyond its start, or a,b")
    if len(values) > MOST_POINTS:
        raise ConfigError(f"{text} has more than {MOST_POINTS:,} values: use fewer")
    return values


def single_point(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides of a single run, with the single values of the chosen experiment's parameters in front.

    Raises ConfigError, which names the sweep command, if the overrides or the experiment give a grid.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        read = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:
        return list(overrides)  # Composing says what can't be read.
    swept = [text for text, override in zip(overrides, read, strict=True) if override.is_sweep_override()]
    params, arms, _ = _params_arms_and_claim([] if swept else overrides)
    given = {_key(o) for o in overrides}
    params = [p for p in params if _key(p) not in given]
    over = [*map(_key, swept), *(["arms"] if arms else [])]
    over += [_key(p) for p in params if key_and_values(p)[1] is not None]
    if over:
        what = swept or [o for o in overrides if _key(o) in ("experiment", "ladder")]
        otherwise = "" if arms else f", or give {'it' if len(over) == 1 else 'each of them'} one value"
        raise ConfigError(
            f"{' '.join(what)} makes a sweep over {', '.join(over)}: use python -m train.sweep {' '.join(what)} ..."
            f"{otherwise}"
        )
    return [*params, *overrides]


def _params_arms_and_claim(
    overrides: Sequence[str], composer: Composer | None = None
) -> tuple[list[str], dict[str, list[dict[str, Any]]], dict[str, Any] | None]:
    """Returns the parameters of the chosen experiment and ladder as overrides, and the experiment's arms and claim."""
    from omegaconf import OmegaConf

    plain = tuple(o for o in overrides if o.lstrip("+").partition("=")[0] in ("experiment", "ladder"))
    if not plain:
        return [], {}, None
    composer = composer or Composer()
    node = composer.of_hydra(plain)
    given: Any = {"params": composer.params[plain], "arms": node.get("arms"), "claim": node.get("claim")}
    given = OmegaConf.to_container(OmegaConf.create(given))
    params, arms, claim = given["params"] or {}, given["arms"] or {}, given["claim"]
    if claim is not None and not isinstance(claim, dict):
        raise ConfigError(f"claim={claim}: give a mapping with the keys of train/findings/claims.yaml")
    if not isinstance(arms, dict):
        raise ConfigError(f"arms={arms}: give a mapping of names to overrides")
    listed = {str(name): [p] if isinstance(p, dict) else p for name, p in arms.items() if p is not None}
    for name, parts in listed.items():
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise ConfigError(f"arms.{name}={parts}: give a mapping of keys to values, or a list of mappings")
    return _texts({str(k): v for k, v in params.items()}), listed, claim


def refuse_hydra_of_files(overrides: Sequence[str]) -> None:
    """Raises ConfigError if a config file changes Hydra's own config beyond hydra.sweeper.params.

    Hydra's multirun instantiates every `_target_` in that config, so a file could run any code. Only the command line
    may set it.
    """
    from omegaconf import OmegaConf

    groups = choices()
    chosen = {tuple(o for o in point if o.lstrip("+").partition("=")[0] in groups) for _, point in expand(overrides)}
    plain: Any
    others: list[Any]
    ours: Any
    hydras: Any
    plain, *others = (OmegaConf.to_container(compose_node(files, with_hydra=True).hydra) for files in ((), *chosen))
    for other in others:
        for key in sorted((other.keys() | plain.keys()) - {"overrides", "job", "runtime"}):
            ours, hydras = other.get(key), plain.get(key)
            if key == "sweeper":
                ours, hydras = ({k: v for k, v in values.items() if k != "params"} for values in (ours, hydras))
            if ours != hydras:
                raise ConfigError(f"hydra.{key}: a config file can set hydra.sweeper.params and nothing else of Hydra")
