"""Builds checked configs from Hydra overrides, plain values, or the config.yaml of a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from conf.axis import ConfigError, checked
from train.config import choices as groups
from train.config.choices import GLOBAL, HEADER, YAML
from train.config.keys import NOT_OF_RUNS
from train.config.messages import composing, hydra_fault, yaml_fault
from train.config.own import for_hydra, resolved
from train.config.plugins import load
from train.config.schema import Config


def compose(overrides: Sequence[str]) -> Config:
    """Returns the checked config for Hydra overrides. Raises ConfigError if one of them can't be used."""
    with composing(overrides):
        refuse_arms(overrides)
        return from_node(compose_node(overrides))


def refuse_arms(overrides: Sequence[str]) -> None:
    """Raises ConfigError for an override of `arms`, which would have no effect on a single run."""
    for override in overrides:
        if override.lstrip("+~").partition("=")[0].partition(".")[0] == "arms":
            raise ConfigError(
                f"{override}: only a sweep has arms: python -m train.sweep 'arms=NAME: KEY=VALUE ...; NAME: ...'"
            )


def compose_node(overrides: Sequence[str], with_hydra: bool = False) -> Any:
    """Returns the unchecked config that Hydra composes from conf/. Raises ConfigError if Hydra fails."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import open_dict
    from omegaconf.errors import OmegaConfBaseException

    overrides = resolved(overrides)
    given = for_hydra(overrides)
    previous = GlobalHydra.instance().hydra if GlobalHydra.instance().is_initialized() else None
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(groups.CONF), version_base="1.3"):
            node = hydra.compose("config", given, return_hydra_config=True)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise yaml_fault(error, overrides=overrides) from None
    except (HydraException, OmegaConfBaseException, TypeError, ValueError) as error:
        raise hydra_fault(error, overrides) from None
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = previous
    for name in ("config", *(f"{group}/{choice}" for group, choice in node.hydra.runtime.choices.items())):
        groups.refuse_retyped(groups.file(name))
    if not with_hydra:
        with open_dict(node):
            del node["hydra"]
    return node


def from_node(node: Any) -> Config:
    """Resolves interpolations in what Hydra composed, and returns the checked config.

    Raises ConfigError if a value is missing, can't be resolved or is invalid.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        values = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value yet: set it with {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}: set it to a plain value") from None
    assert isinstance(values, dict)
    return from_values({str(k): v for k, v in values.items()})


def from_values(values: Mapping[str, Any]) -> Config:
    """Returns the checked config for plain values that Hydra composed. Raises ConfigError if one is invalid."""
    for group in GLOBAL:
        if group in values:
            raise ConfigError(f"{group}: the chosen file is empty or lacks its first line: begin it with {HEADER}")
    return of_values({k: v for k, v in values.items() if k not in NOT_OF_RUNS})


def of_values(values: Mapping[str, Any]) -> Config:
    """Returns the checked config for plain values such as those of config.yaml, after loading its plugins.

    Raises ConfigError if a value is invalid, or if a plugin's code is not that of the values.
    """
    plugins = values.get("plugins")
    if isinstance(plugins, str):
        values = {**values, "plugins": load(plugins)}
    return checked(Config, values)


def from_file(path: Path) -> Config:
    """Returns the config in a run folder's config.yaml. Raises ConfigError if the file is damaged."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), YAML)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise yaml_fault(error, path) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a config: it must map keys to values")
    return of_values(values)


def to_yaml(config: Config) -> str:
    """Returns the text of config.yaml in a run folder."""
    return yaml.safe_dump(config.values(), sort_keys=False)
