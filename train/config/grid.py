"""Expands overrides with several values, in Hydra's grammar, into the points of a grid, and composes their configs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from omegaconf import DictConfig

from conf.axis import ConfigError, near
from train.config.choices import choices
from train.config.compose import compose_node, from_node, refuse_arms
from train.config.messages import hydra_fault, unreadable
from train.config.schema import Config


def expand(overrides: Sequence[str]) -> list[tuple[str | None, list[str]]]:
    """Returns the arm and the overrides of every point, arm by arm; the first key varies slowest.

    A key has several values if it is written as `k=a,b`, `k=[a,b]`, `k=choice(...)`, `k=range(...)` or `k=glob(...)`.
    The chosen experiment and ladder add the keys of their hydra.sweeper.params; a ladder replaces the experiment's
    sizes. An experiment's `arms` maps the name of an arm to a mapping of overrides, to a list of such mappings whose
    grids are concatenated, or to null, which drops the arm. For the same key, an arm takes precedence over the
    experiment's parameters, and `overrides` over both. Raises ConfigError for an override that can't be read.
    """
    params, arms = _params_and_arms(overrides)
    grids: list[tuple[str | None, list[str]]] = [(arm, _texts(values)) for arm, each in arms.items() for values in each]
    return [(arm, point) for arm, own in grids or [(None, [])] for point in _product([*params, *own, *overrides])]


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
    return [[*fixed, *point] for point in itertools.product(*axes.values())]


def compose_all(points: Sequence[Sequence[str]]) -> list[Config]:
    """Returns the checked config of every point. Raises ConfigError for the first that can't be used."""
    composer = Composer()
    return [composer.config(point) for point in points]


class Composer:
    """Composes many configs, calling Hydra only once for each set of choices.

    Hydra takes 0.2 s to compose a config. Setting plain values on a composed one takes a few milliseconds.
    """

    def __init__(self) -> None:
        self.groups = choices()
        self.composed: dict[tuple[str, ...], DictConfig] = {}
        self.nodes: dict[tuple[tuple[str, ...], ...], DictConfig] = {}

    def config(self, point: Sequence[str]) -> Config:
        """Returns the same config as `train.config.compose.compose`, and raises the same ConfigError."""
        refuse_arms(point)
        for_hydra = self._for_hydra(point)
        values = [o for o in point if o not in for_hydra]
        # Points with the same keys can share a node, because each sets all of these keys again.
        node = self._node(for_hydra, tuple(_key(o) for o in values))
        for text in values:
            _set(node, text)
        return from_node(node)

    def _for_hydra(self, point: Sequence[str]) -> tuple[str, ...]:
        """Returns the overrides that Hydra must apply: choices, +key, ~key, and mappings, which it merges."""
        needed = [o for o in point if _key(o) in self.groups or not o[0].isalpha() or isinstance(parsed(o)[1], dict)]
        special = [o.lstrip("+~").partition("=")[0] for o in needed if _key(o) not in self.groups]
        if any(f"{key}.".startswith(f"{_key(o)}.") or f"{_key(o)}.".startswith(f"{key}.")
               for key in special for o in point if o not in needed):  # fmt: skip
            return tuple(point)  # A plain value sets the same key, or one above or below it, so their order matters.
        return tuple(needed)

    def _node(self, for_hydra: tuple[str, ...], keys: tuple[str, ...]) -> DictConfig:
        if for_hydra not in self.composed:
            self.composed[for_hydra] = compose_node(for_hydra)
        if (for_hydra, keys) not in self.nodes:
            self.nodes[for_hydra, keys] = self.composed[for_hydra].copy()
        return self.nodes[for_hydra, keys]


def _set(node: DictConfig, text: str) -> None:
    """Sets a plain value. Raises ConfigError for an unknown key, with the same text as for Hydra's own error."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key, value = parsed(text)
    try:
        OmegaConf.update(node, key, value, force_add=False)
    except OmegaConfBaseException as error:
        raise hydra_fault(error, [text]) from None


def _key(override: str) -> str:
    return override.partition("=")[0]


@cache
def parsed(text: str) -> tuple[str, Any]:
    """Returns the key and the value of an override in Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(text)
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
        return key, [f"{key}={v}" for v in override.sweep_string_iterator()]
    if isinstance(value, list):
        return key, [f"{key}={Override._get_value_element_as_str(v)}" for v in value]
    return key, None


def _params_and_arms(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[dict[str, Any]]]]:
    """Returns the sweep parameters of the chosen experiment and ladder as overrides, and the experiment's arms."""
    from omegaconf import OmegaConf

    plain = [o for o in overrides if o.lstrip("+").partition("=")[0] in ("experiment", "ladder")]
    if not plain:
        return [], {}
    node = compose_node(plain, with_hydra=True)
    given: Any = {"params": node.hydra.sweeper.get("params"), "arms": node.get("arms")}
    given = OmegaConf.to_container(OmegaConf.create(given))
    params, arms = given["params"] or {}, given["arms"] or {}
    if not isinstance(arms, dict):
        raise ConfigError(f"arms={arms}: give a mapping of names to overrides")
    listed = {str(name): [p] if isinstance(p, dict) else p for name, p in arms.items() if p is not None}
    for name, parts in listed.items():
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise ConfigError(f"arms.{name}={parts}: give a mapping of keys to values, or a list of mappings")
    return _texts({str(k): v for k, v in params.items()}), listed


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
