"""Expands overrides with several values, in Hydra's grammar, to the points of a grid, and composes their configs."""

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

    A key has several values as `k=a,b`, `k=[a,b]`, `k=choice(...)`, `k=range(...)` or `k=glob(...)`. The chosen
    experiment and ladder add those of their hydra.sweeper.params; a ladder replaces the experiment's sizes. An
    experiment's `arms` maps the name of each arm to overrides, or to a list of such mappings whose grids are joined, or
    to null for an arm that is left out. For the same key an arm replaces the experiment's values, and an override given
    here replaces both.
    """
    groups, arms = _of_groups(overrides)
    parts: list[tuple[str | None, list[str]]] = [(name, _texts(p)) for name, found in arms.items() for p in found]
    return [(name, point) for name, texts in parts or [(None, [])] for point in _product([*groups, *texts, *overrides])]


def _texts(values: Mapping[str, Any]) -> list[str]:
    plain = {None: "null", True: "true", False: "false"}
    return [f"{k}={plain[v] if v is None or isinstance(v, bool) else v}" for k, v in values.items()]


def _product(overrides: Sequence[str]) -> list[list[str]]:
    fixed: list[str] = []
    axes: dict[str, list[str]] = {}
    for text in overrides:
        key, values = key_and_values(text)
        fixed = [f for f in fixed if f.partition("=")[0] != key]
        if values is None:
            axes.pop(key, None)
            fixed.append(text)
        else:
            axes[key] = values  # in the place of an earlier one for the same key
    return [[*fixed, *point] for point in itertools.product(*axes.values())]


def compose_all(points: Sequence[Sequence[str]]) -> list[Config]:
    """Returns the checked config of every point."""
    composer = Composer()
    return [composer.config(point) for point in points]


class Composer:
    """Composes configs as train.config.compose does, but has Hydra compose once for each set of choices.

    Hydra takes a fifth of a second; to set plain values on what it has composed takes a few milliseconds.
    """

    def __init__(self) -> None:
        self.groups = choices()
        self.composed: dict[tuple[str, ...], DictConfig] = {}
        self.nodes: dict[tuple[tuple[str, ...], ...], DictConfig] = {}

    def config(self, point: Sequence[str]) -> Config:
        """Returns the checked config for Hydra overrides; ConfigError, one line, when any of them can't be used."""
        refuse_arms(point)
        for_hydra = self._for_hydra(point)
        values = [o for o in point if o not in for_hydra]
        # Points with the same keys share a node: each sets all of them again.
        node = self._node(for_hydra, tuple(_key(o) for o in values))
        for text in values:
            _set(node, text)
        return from_node(node)

    def _for_hydra(self, point: Sequence[str]) -> tuple[str, ...]:
        """Returns the overrides that Hydra has to apply: choices, +key, ~key, and mappings, which it merges."""
        found = [o for o in point if _key(o) in self.groups or not o[0].isalpha() or isinstance(parsed(o)[1], dict)]
        special = [o.lstrip("+~").partition("=")[0] for o in found if _key(o) not in self.groups]
        if any(f"{key}.".startswith(f"{_key(o)}.") or f"{_key(o)}.".startswith(f"{key}.")
               for key in special for o in point if o not in found):  # fmt: skip
            return tuple(point)  # both set the same key, or one below it: their order counts
        return tuple(found)

    def _node(self, for_hydra: tuple[str, ...], keys: tuple[str, ...]) -> DictConfig:
        if for_hydra not in self.composed:
            self.composed[for_hydra] = compose_node(for_hydra)
        if (for_hydra, keys) not in self.nodes:
            self.nodes[for_hydra, keys] = self.composed[for_hydra].copy()
        return self.nodes[for_hydra, keys]


def _set(node: DictConfig, text: str) -> None:
    """Sets a plain value; a key that isn't there is refused as Hydra refuses it."""
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
    """Returns key and value of an override in Hydra's grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(text)
    return override.key_or_group, override.value()


def key_and_values(text: str) -> tuple[str, list[str] | None]:
    """Returns the key of an override and, where it has several values, an override for each."""
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


def _of_groups(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[dict[str, Any]]]]:
    """Returns the grid of the chosen experiment and ladder, and the experiment's arms."""
    from omegaconf import OmegaConf

    plain = [o for o in overrides if o.lstrip("+").partition("=")[0] in ("experiment", "ladder")]
    if not plain:
        return [], {}
    node = compose_node(plain, with_hydra=True)
    found = {"params": node.hydra.sweeper.get("params"), "arms": node.get("arms")}
    given: Any = OmegaConf.to_container(OmegaConf.create(found))
    params, arms = given["params"] or {}, given["arms"] or {}
    if not isinstance(arms, dict):
        raise ConfigError(f"arms={arms}: give a mapping of names to overrides")
    listed = {str(name): [p] if isinstance(p, dict) else p for name, p in arms.items() if p is not None}
    for name, parts in listed.items():
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise ConfigError(f"arms.{name}={parts}: give a mapping of keys to values, or a list of such")
    return _texts({str(k): v for k, v in params.items()}), listed


def refuse_hydra_of_files(overrides: Sequence[str]) -> None:
    """Raises ConfigError where a config file sets more of Hydra than the grid.

    Hydra's multirun builds what its own config names as _target_, callbacks and log handlers too. The command line may
    set any of it.
    """
    from omegaconf import OmegaConf

    groups = choices()
    chosen = {tuple(o for o in point if o.lstrip("+").partition("=")[0] in groups) for _, point in expand(overrides)}
    plain: Any
    plain, *others = (OmegaConf.to_container(compose_node(files, with_hydra=True).hydra) for files in ((), *chosen))
    for found in others:
        _compare_hydra(found, plain)


def _compare_hydra(ours: Any, hydras: Any) -> None:
    for key in sorted(ours.keys() | hydras.keys()):
        one, other = ours.get(key), hydras.get(key)
        if key == "sweeper":
            one, other = ({k: v for k, v in values.items() if k != "params"} for values in (one, other))
        if one != other and key not in ("overrides", "job", "runtime"):
            raise ConfigError(f"hydra.{key}: a config file can set hydra.sweeper.params and nothing else of Hydra")
