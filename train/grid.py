"""From overrides with several values to the points of their grid, in Hydra's own grammar."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from conf.axis import ConfigError


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The override lists of every point, first key slowest.

    `k=a,b`, `k=choice(...)`, `k=range(...)`, `k=glob(...)` and lists `k=[a,b]` make a grid, as does the chosen
    experiment's hydra.sweeper.params; an override given here takes the place of the experiment's for the same key.
    """
    fixed: list[str] = []
    axes: dict[str, list[str]] = {}
    for text in [*_of_experiment(overrides), *overrides]:
        key, values = _values(text)
        fixed = [f for f in fixed if f.partition("=")[0] != key]
        axes.pop(key, None)
        if values is None:
            fixed.append(text)
        else:
            axes[key] = values
    return [[*fixed, *point] for point in itertools.product(*axes.values())]


def _values(text: str) -> tuple[str, list[str] | None]:
    """The key of an override and, where it has several values, an override for each."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import ListExtensionOverrideValue, Override
    from hydra.errors import HydraException

    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException:
        raise ConfigError(
            f"can't read the override {text!r}: write key=value, quote values with special characters"
        ) from None
    key = override.input_line.partition("=")[0] if override.input_line else text
    value = override.value()
    if override.is_sweep_override():
        prefix = override.input_line.partition("=")[0] if override.input_line else key
        return key, [f"{prefix}={v}" for v in override.sweep_string_iterator()]
    if isinstance(value, list) and not isinstance(value, ListExtensionOverrideValue):
        return key, [f"{key}={Override._get_value_element_as_str(v)}" for v in value]
    return key, None


def _of_experiment(overrides: Sequence[str]) -> list[str]:
    from omegaconf import OmegaConf

    from train.config import compose_node

    plain = [o for o in overrides if o.lstrip("+").startswith("experiment=")]
    if not plain:
        return []
    params = OmegaConf.to_container(compose_node(plain, with_hydra=True).hydra.sweeper.get("params") or {})
    assert isinstance(params, dict)
    return [f"{key}={value}" for key, value in params.items()]
