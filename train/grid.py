"""From overrides with several values to the points of their grid, in Hydra's own grammar."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from conf.axis import ConfigError, near
from train.config import Config, choices, compose_node, from_node, hydra_fault


def expand(overrides: Sequence[str]) -> list[tuple[str | None, list[str]]]:
    """The arm and the overrides of every point, arm by arm, first key slowest.

    `k=a,b`, `k=choice(...)`, `k=range(...)`, `k=glob(...)` and lists `k=[a,b]` make a grid, as do hydra.sweeper.params
    of the chosen experiment and of the chosen ladder, which takes the place of the experiment's sizes; an override
    given here takes the place of theirs for the same key. So does an arm of the experiment: `arms` maps the name of
    each to its overrides, which may be grids too, to a list of such mappings, whose grids are joined, or to null for
    an arm that another file defines and this one leaves out.
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
        key, values = _values(text)
        fixed = [f for f in fixed if f.partition("=")[0] != key]
        if values is None:
            axes.pop(key, None)
            fixed.append(text)
        else:
            axes[key] = values  # in the place of an earlier one for the same key
    return [[*fixed, *point] for point in itertools.product(*axes.values())]


def compose_all(points: Sequence[Sequence[str]]) -> list[Config]:
    """The checked config of every point. Hydra composes once a set of choices; plain values are set on copies."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    groups, parser, composed = choices(), OverridesParser.create(), dict[tuple[str, ...], DictConfig]()
    configs = []
    for point in points:
        chosen = tuple(o for o in point if o.partition("=")[0] in groups or not o[0].isalpha())
        if chosen not in composed:
            composed[chosen] = compose_node(chosen)
        node = composed[chosen].copy()
        try:
            for text in point:
                if text not in chosen:
                    override = parser.parse_override(text)
                    OmegaConf.update(node, override.key_or_group, override.value(), force_add=False)
        except OmegaConfBaseException as error:
            raise hydra_fault(error, point) from None
        configs.append(from_node(node))
    return configs


def _values(text: str) -> tuple[str, list[str] | None]:
    """The key of an override and, where it has several values, an override for each."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob, Override
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        raise ConfigError(
            f"can't read the override {text!r}: write key=value, quote values with special characters"
        ) from None
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
    """The grid that the experiment and the ladder bring along, and the experiment's arms."""
    from omegaconf import OmegaConf

    plain = [o for o in overrides if o.lstrip("+").partition("=")[0] in ("experiment", "ladder")]
    if not plain:
        return [], {}
    node = compose_node(plain, with_hydra=True)
    found = {"params": node.hydra.sweeper.get("params"), "arms": node.get("arms")}
    given = dict[Any, Any](OmegaConf.to_container(OmegaConf.create(found)))
    params, arms = given["params"] or {}, given["arms"] or {}
    if not isinstance(arms, dict):
        raise ConfigError(f"arms={arms}: give a mapping of names to overrides")
    listed = {str(name): [p] if isinstance(p, dict) else p for name, p in arms.items() if p is not None}
    for name, parts in listed.items():
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise ConfigError(f"arms.{name}={parts}: give a mapping of keys to values, or a list of such")
    return _texts({str(k): v for k, v in params.items()}), listed


def refuse_hydra_of_files(overrides: Sequence[str]) -> None:
    """Hydra's multirun builds what its own config names as _target_, callbacks and log handlers too: a file may set
    the grid there and nothing else, the command line what it likes. Raises ConfigError."""
    from omegaconf import OmegaConf

    plain = [o for o in overrides if not o.lstrip("+~").startswith("hydra")]
    nodes = (compose_node(given, with_hydra=True).hydra for given in (plain, []))
    ours, hydras = (dict[Any, Any](OmegaConf.to_container(node)) for node in nodes)
    for key in sorted(ours.keys() | hydras.keys()):
        one, other = ours.get(key), hydras.get(key)
        if key == "sweeper":
            one, other = ({k: v for k, v in values.items() if k != "params"} for values in (one, other))
        if one != other and key not in ("overrides", "job", "runtime"):
            raise ConfigError(f"hydra.{key}: a config file can set hydra.sweeper.params and nothing else of Hydra")
