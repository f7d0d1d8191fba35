"""The whole config of a run: composed by Hydra from conf/, checked here before anything is written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, near
from data.config import DATA, DataConfig
from models.architecture import Architecture
from train.config import fsdp as shardable
from train.config import names
from train.config.choices import experiments
from train.config.launcher import LAUNCHER, LauncherConfig, Local
from train.loggers import LOGGER, LoggerConfig
from train.losses import LOSS, LossConfig
from train.optimizers import OPTIMIZER, OptimizerConfig
from train.optimizers.schedules import SCHEDULE, ScheduleConfig

Count = Annotated[int, Field(ge=1)]
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Runtime:
    """Where and how a run happens. Nothing here changes its numbers by more than rounding: none enters the hash."""

    out: str
    """Folder for run and sweep folders."""
    name: Annotated[str, Field(pattern=NAME, max_length=names.LONGEST)] | None = None
    """Name of your own, letters, digits and -_. alone: a run's folder is NAME-<hash>, a sweep's NAME. Null calls a run
    after what is not default, a sweep after what it varies."""
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
        """Returns plain values, as in config.yaml."""
        return asdict(self)

    @classmethod
    def fields_of_hash(cls) -> list[str]:
        """Returns the names of the fields that decide a run's numbers, in the order of the config."""
        return [field.name for field in fields(cls) if field.name not in Runtime.__dataclass_fields__]

    def digest(self) -> str:
        """Returns eight hex digits of a hash over everything that decides the run's numbers."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        values = self.values()
        hashed = {name: values[name] for name in self.fields_of_hash()}
        if not self.eval_lengths:  # measures more and changes nothing: without it, the run that it was
            del hashed["eval_lengths"]
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:8]

    def run_name(self) -> str:
        """Returns the run folder's name: `name` or else the readable part, and the hash, which is W&B's run id."""
        return self._run_name

    @cached_property
    def _run_name(self) -> str:
        return f"{self.name or self.readable()}-{self.digest()}"

    def readable(self) -> str:
        """Returns what tells the run from others: each field that is not its default. See train.config.names."""
        return names.readable(self)
