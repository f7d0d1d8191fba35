"""The whole config of a run: composed by Hydra from conf/, checked here before anything is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, axes, by_type, checked_field, near
from data.config import DATA, DataConfig
from models.architecture import Architecture
from train.config import fsdp as shardable
from train.config.choices import default_choices, experiments
from train.config.launcher import LAUNCHER, LauncherConfig, Local
from train.loggers import LOGGER, LoggerConfig
from train.losses import LOSS, LossConfig
from train.optimizers import OPTIMIZER, OptimizerConfig
from train.optimizers.schedules import SCHEDULE, ScheduleConfig

Count = Annotated[int, Field(ge=1)]
LONGEST_NAME = 200
"""Characters of a run's readable name; file systems take 255 with the hash. What is cut off is in the hash."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Runtime:
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
class Config(Architecture, Runtime):
    """One run. Everything but the fields of Runtime decides its numbers and enters its hash."""

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
        longest = max(self.eval_lengths, default=1)
        if longest > 1 and not self.qk_source.endless:
            raise ValueError(
                f"qk_source={self.qk_source.name} has a sequence as long as the context, eval_lengths={longest} goes "
                f"beyond it: use eval_lengths=[] or qk_source=stream"
            )
        if longest > 1 and not self.position.endless:
            raise ValueError(
                f"eval_lengths={list(self.eval_lengths)} goes beyond the context={self.context} positions that "
                f"position={self.position.name} has: use position=rope, alibi or none"
            )
        if len(set(self.eval_lengths)) < len(self.eval_lengths):
            raise ValueError(f"eval_lengths={list(self.eval_lengths)} has a length twice: name each once")
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
        names = set(_names(type(self))) - Runtime.__dataclass_fields__.keys()
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
            if axis not in ("qk_norm", *Runtime.__dataclass_fields__) and name != defaults.get(axis, name):
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
