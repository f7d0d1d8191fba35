"""The whole config of a run: composed by Hydra from conf/, checked here before anything is written."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

import conf
from conf.axis import CHECKED, ConfigError, axes, by_type, checked, checked_field, near
from data.config import DATA, DataConfig
from models.gpt import Architecture
from models.size import SizeConfig
from train.config import fsdp as shardable
from train.config.launcher import LAUNCHER, LauncherConfig, Local
from train.loggers.base import LOGGER, LoggerConfig
from train.losses import LOSS, LossConfig
from train.optimizers import OPTIMIZER, OptimizerConfig
from train.optimizers.schedules import SCHEDULE, ScheduleConfig

CONF = Path(conf.__file__).parent

GLOBAL, HEADER = ("experiment", "ladder", "scale"), "# @package _global_"
"""Groups whose files set keys of the whole config, and how such a file begins."""

Count = Annotated[int, Field(ge=1)]
LONGEST_NAME = 200
"""Characters of a run's readable name; file systems take 255 with the hash. What is cut off is in the hash."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Place:
    """Where and how a run happens. Nothing here changes its numbers by more than rounding: none enters the hash."""

    out: str
    """Folder for run and sweep folders."""
    cache: str
    """Folder for prepared token files; ~ is the home folder."""
    logger: Annotated[LoggerConfig, LOGGER]
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    """Device kind, as in Lightning."""
    devices: Count | None
    """Processes on this machine, one device each; null is one. The global batch is shared out among them."""
    nodes: Count
    """Machines, as in Lightning."""
    strategy: Literal["auto", "ddp", "fsdp"]
    """How devices share the work. ddp: each holds the whole model; auto is that on several devices. fsdp: each holds a
    part of every parameter, gradient and optimizer state, and has a block whole while it runs (FSDP2: Zhao et al. 2023,
    arXiv 2304.11277; torch's fully_shard). The same numbers but for rounding; checkpoints are those of the others."""
    threads: Annotated[int, Field(ge=0)]
    """CPU threads of a process; 0 leaves torch's choice."""
    checkpoint_seconds: Annotated[float, Field(ge=0)]
    """Least time between two checkpoints, which fall on watch steps; 0 writes one at each."""
    progress: bool
    """Show a progress line."""
    launcher: Annotated[LauncherConfig, LAUNCHER] = Local()
    """What trains a sweep's runs."""
    finding: str | None
    """Name of the published claim that an experiment file tests; the W&B group of a run outside a sweep."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Config(Architecture, Place):
    """One run. Everything but the fields of Place decides its numbers and enters its hash."""

    loss: Annotated[LossConfig, LOSS]
    optimizer: Annotated[OptimizerConfig, OPTIMIZER]
    schedule: Annotated[ScheduleConfig, SCHEDULE]
    data: Annotated[DataConfig, DATA]
    context: Count
    """Tokens of a training sequence."""
    batch_size: Count
    """Sequences of an optimizer step, over all devices and micro-batches."""
    accumulate: Count
    """Micro-batches of an optimizer step; they share batch_size."""
    steps: Count
    """Optimizer steps."""
    seed: Annotated[int, Field(ge=0)]
    """Of the initial weights and of the order of the training blocks."""
    precision: Literal["fp32", "bf16"]
    """Of matrix products; bf16 keeps softmax, norms, logits, statistics and master weights in fp32."""
    compile: bool
    """Run the model through torch.compile."""
    watch_every: Count
    """Steps from one watch step (all probes) to the next; the loss is recorded at every step."""
    eval_batches: Count
    """Size of the fixed validation set, in batches of batch_size sequences."""
    eval_every: Count | None
    """Steps between validations during training; null validates at the start and the end only."""
    eval_lengths: tuple[Count, ...]
    """Lengths at which the end of training validates too, in multiples of context: the same text in longer sequences.
    Positions go on, constants that rules take from the context stay."""

    @model_validator(mode="after")
    def _settings_go_together(self) -> Config:
        if self.finding is not None and self.finding not in experiments():
            raise ValueError(f"finding={self.finding} is not known: {near(self.finding, list(experiments()))}")
        self.schedule.fits(steps=self.steps, peak=self.optimizer.lr)
        shardable.fits(self)
        wrong = next((r for r in self.attention.of_blocks(self.model.depth) if self.compile and not r.compiles), None)
        if wrong is not None:
            raise ValueError(
                f"compile=true gets the gradients of attention={wrong.name} wrong: "
                f"use compile=false or attention=softmax"
            )
        shares = self.accumulate * (self.devices or 1) * self.nodes
        if self.batch_size % shares:
            raise ValueError(
                f"batch_size={self.batch_size} can't be shared by accumulate={self.accumulate} x "
                f"devices={self.devices or 1} x nodes={self.nodes}: use a multiple of {shares}"
            )
        if max(self.eval_lengths, default=1) > 1 and not self.position.endless:
            raise ValueError(
                f"eval_lengths={list(self.eval_lengths)} goes beyond the context={self.context} positions that "
                f"position={self.position.name} has: use position=rope, alibi or none"
            )
        if len(set(self.eval_lengths)) < len(self.eval_lengths):
            raise ValueError(f"eval_lengths={list(self.eval_lengths)} has a length twice: name each once")
        if self.position.name == "rope" and (self.model.width // self.model.heads) % 2:
            raise ValueError(
                f"position=rope needs an even head dimension, not {self.model.width // self.model.heads} as of "
                f"model.width={self.model.width} and model.heads={self.model.heads}: change them or use position=alibi"
            )
        return self

    def values(self) -> dict[str, Any]:
        """Plain values, as in config.yaml."""
        return {name: _plain(getattr(self, name)) for name in _names(type(self))}

    def changed(self, values: Mapping[str, Any]) -> Config:
        """With other plain values in these fields, as strictly checked as all are by `from_values`; what a grid leaves
        alone is shared. Raises pydantic's ValidationError, whose paths lack the field."""
        found = {name: getattr(self, name) for name in _names(type(self))}
        return Config(**found | {name: checked_field(Config, name, value) for name, value in values.items()})

    def digest(self) -> str:
        """Eight hex digits of a hash over everything that decides the run's numbers."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        names = set(_names(type(self))) - Place.__dataclass_fields__.keys()
        if not self.eval_lengths:  # measures more and changes nothing: without it, the run that it was
            names.remove("eval_lengths")
        # json.dumps of all of them with sorted keys.
        parts = (f'"{name}": {_canonical(getattr(self, name))}' for name in sorted(names))
        return hashlib.sha256(f"{{{', '.join(parts)}}}".encode()).hexdigest()[:8]

    def run_name(self) -> str:
        """Readable part and hash; the run folder's name, W&B's run id is its hash."""
        return self._run_name

    @cached_property
    def _run_name(self) -> str:
        return f"{self.readable()}-{self.digest()}"

    def readable(self) -> str:
        chosen = [self.model.name, f"qk_{self.qk_norm.name}"]
        defaults = default_choices()
        for axis in axes(Config):
            name = getattr(self, axis).name
            if axis not in ("qk_norm", *Place.__dataclass_fields__) and name != defaults.get(axis, name):
                chosen.append(f"{axis}_{name}")
        end = f"-lr{self.optimizer.lr:g}-seed{self.seed}"
        return "-".join(chosen)[: LONGEST_NAME - len(end)] + end


@by_type
def _names(config: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(config))


CANONICAL = "_canonical"
SCALARS = frozenset((type(None), bool, int, float, str))


def _plain(value: Any) -> Any:
    """As dataclasses.asdict, without its copies of what can't change: a sweep asks for the values of all its runs."""
    if type(value) in SCALARS:
        return value
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    own = value if isinstance(value, dict) else {name: getattr(value, name) for name in _names(type(value))}
    return {name: v if type(v) in SCALARS else _plain(v) for name, v in own.items()}


def _canonical(part: Any) -> str:
    """The JSON of a field, keys sorted; that of a choice is made once, and stays with it."""
    if type(part) in SCALARS or isinstance(part, tuple):
        return json.dumps(_plain(part))
    text = vars(part).get(CANONICAL)
    if text is None:
        text = json.dumps(_plain(part), sort_keys=True)
        object.__setattr__(part, CANONICAL, text)
    return text


@cache
def default_choices() -> Mapping[str, str]:
    """The choice of each group that conf/config.yaml names. Read once: every run's name asks for it."""
    entries = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    return {k: v for entry in entries if isinstance(entry, dict) for k, v in entry.items()}


@cache
def experiments() -> Sequence[str]:
    """Names of the experiment files, which are those of the findings that they test."""
    return choices()["experiment"]


def choices() -> dict[str, list[str]]:
    """Config groups and their choices, from the folders of conf/."""
    groups: dict[str, list[str]] = {}
    for path in sorted(CONF.glob("**/*.yaml")):
        group = path.parent.relative_to(CONF).as_posix()
        if group != ".":
            groups.setdefault(group, []).append(path.stem)
    return groups


def compose(overrides: Sequence[str]) -> Config:
    """The checked config for Hydra overrides; ConfigError, one line, when any of them can't be used."""
    refuse_arms(overrides)
    return from_node(compose_node(overrides))


def refuse_arms(overrides: Sequence[str]) -> None:
    """Arms make a sweep's points and are no part of a point: on a command line they would change nothing."""
    for override in overrides:
        if override.lstrip("+~").partition("=")[0].partition(".")[0] == "arms":
            raise ConfigError(f"{override}: arms are an experiment's own: write one with others in conf/experiment/")


def compose_node(overrides: Sequence[str], with_hydra: bool = False) -> Any:
    """What Hydra composes from conf/, unchecked. Hydra's own faults become ConfigError."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    previous = GlobalHydra.instance().hydra if GlobalHydra.instance().is_initialized() else None
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose("config", list(overrides), return_hydra_config=with_hydra)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise yaml_fault(error) from None
    except (HydraException, OmegaConfBaseException, TypeError, ValueError) as error:
        raise hydra_fault(error, overrides) from None
    finally:
        GlobalHydra.instance().clear()
        GlobalHydra.instance().hydra = previous


def from_node(node: Any) -> Config:
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        values = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value yet: give it as {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}: give it a value of its own") from None
    assert isinstance(values, dict)
    return from_values({str(k): v for k, v in values.items()})


def from_values(values: Mapping[str, Any]) -> Config:
    """The checked config of plain values as Hydra composes them."""
    for group in GLOBAL:
        if group in values:
            raise ConfigError(f"{group}: its file is empty or doesn't begin with the line {HEADER}")
    return checked(Config, {k: v for k, v in values.items() if k not in ("hydra", "arms")})


def from_file(path: Path) -> Config:
    """The config of a run folder's config.yaml; ConfigError where that is damaged."""
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise yaml_fault(error, path) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is no config: a mapping of keys to values is needed")
    return checked(Config, values)


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(config.values(), sort_keys=False)


def yaml_fault(error: Exception, path: Path | None = None) -> ConfigError:
    """One line for a YAML file that can't be read: which, where, why."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        name = mark.name if path is None else path
        return ConfigError(f"{name}, line {mark.line + 1}: {getattr(error, 'problem', error)}: correct the YAML")
    broken = path or next((p for p in sorted(CONF.glob("**/*.yaml")) if not _is_text(p)), CONF)
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
        there = (CONF / group / f"{value}.yaml").exists()  # a choice in a folder of its own, experiment=paper/qk_norm
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
