"""Defines and checks the config of a run, which Hydra composes from conf/."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from conf.axis import CHECKED, near
from conf.paths import expanded
from data.config import DATA, DataConfig
from models import recompute
from models.architecture import Architecture
from models.head import LinearHead
from models.masking import NoMasking
from models.recompute import Recompute
from train.config import fsdp, names
from train.config.choices import experiments
from train.config.launcher import LAUNCHER, LauncherConfig, Local
from train.config.watch import Watch
from train.loggers import LOGGER, LoggerConfig
from train.losses import LOSS, LossConfig
from train.optimizers import OPTIMIZER, OptimizerConfig
from train.optimizers.base import LRFactors
from train.optimizers.schedules import SCHEDULE, ScheduleConfig

Count = Annotated[int, Field(ge=1)]
LATER_FIELDS = {
    "mlp.widths": (),
    "mlp.strata": 2,
    "mlp.merge_over": "token",
    "mlp.affinity": "softplus",
    "mlp.upcycle": None,
    "mlp.redraw": 0.5,
    "attention.normalize": False,
    "augmented_shortcut": None,
    "head": asdict(LinearHead()),
    "position.scale": 1.0,
    "position.power": 0.0,
    "position.truncate": None,
    "masking": asdict(NoMasking()),
    "eval_lengths": (),
    "init_from": None,
    "optimizer.decay_times_steps": None,
    "optimizer.groups": asdict(LRFactors()),
    "optimizer.beta2_half_life": None,
    "schedule.final_fraction": None,
    "plugins": None,
    "data.errors": "strict",
    "loss.arithmetic": "fp32",
}
"""Fields that runs of before don't have, and the values with which they change nothing: these are not hashed."""
PLUGIN_HASH = re.compile(r"@([0-9a-f]{16})(?=$|:)")
NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Runtime:
    """Fields for where and how a run is trained. They are not hashed, and change its numbers by rounding at most,
    but for `devices` and `nodes` where a choice takes means over or draws for the tokens of one device: loss=eslm,
    noisy_softmax, sampled_softmax and tempnet, and mlp=moe."""

    out: str
    """Folder in which run and sweep folders are created; ~ is the home folder."""
    name: Annotated[str, Field(pattern=NAME, max_length=names.LONGEST)] | None = None
    """Folder name: a run is NAME-<hash>, a sweep NAME; only letters, digits and -_. are allowed. Null names a run after
    its non-default fields and a sweep after the fields it varies."""
    cache: str
    """Folder for prepared token files; ~ is the home folder."""
    logger: Annotated[LoggerConfig, LOGGER]
    accelerator: Literal["auto", "cpu", "cuda", "mps"]
    """Type of device, as in Lightning."""
    devices: Count | None
    """Devices per node, with one process each. Null is one. They share batch_size."""
    nodes: Count
    """Number of machines, as in Lightning."""
    strategy: Literal["auto", "ddp", "fsdp"]
    """How several devices train a model. ddp (and auto) replicates it; fsdp shards parameters, gradients and optimizer
    state (FSDP2: Zhao et al. 2023, arXiv 2304.11277). Numbers agree up to rounding; checkpoints are interchangeable."""
    threads: Annotated[int, Field(ge=0, le=4096)]
    """CPU threads per process. 0 keeps torch's default."""
    checkpoint_seconds: Annotated[float, Field(ge=0)]
    """Shortest time between checkpoints, in seconds. They fall on watch steps; 0 writes one at each."""
    progress: bool
    """Show a progress line."""
    recompute: Recompute = "none"
    """What the backward pass computes again instead of keeping it: nothing, the attention weights and the mixture of
    values (attention), or whole blocks (block). Less memory, the same numbers. Korthikanti et al. 2022."""
    launcher: Annotated[LauncherConfig, LAUNCHER] = Local()
    """Where the runs of a sweep train."""
    watch: Watch = Watch()
    """Thresholds on probes, and what happens when a run passes them."""
    stop_when: Literal["never", "broken"] = "never"
    """When a sweep stops a run. broken: after a quarter of its steps it is 0.5 nats above the same run at a lower LR,
    in the median over a tenth of its steps. stop_when=never then trains it to its end."""
    finding: str | None
    """Name of the finding that an experiment tests. For a run outside a sweep it is the W&B group."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Config(Architecture, Runtime):
    """The config of one run. All fields except those of Runtime determine its numbers and enter its hash."""

    loss: Annotated[LossConfig, LOSS]
    optimizer: Annotated[OptimizerConfig, OPTIMIZER]
    schedule: Annotated[ScheduleConfig, SCHEDULE]
    data: Annotated[DataConfig, DATA]
    context: Count
    """Length of a training sequence, in tokens."""
    batch_size: Count
    """Sequences per optimizer step, over all devices and micro-batches."""
    accumulate: Count
    """Micro-batches per optimizer step. They share batch_size."""
    steps: Count
    """Number of optimizer steps."""
    init_from: str | None = None
    """Folder of an ended run whose final weights this run starts from, with a new optimizer. The hash takes that run's
    hash, which ends its name, and not the path."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Random seed of the initial weights and of the data order; torch's generator takes 32 bits."""
    precision: Literal["fp32", "bf16"]
    """Precision of matrix products. bf16 keeps softmax, norms, logits, statistics and master weights in fp32."""
    compile: bool
    """Compile the model with torch.compile, but for watch steps, which take the memory of a model that is not."""
    watch_every: Count
    """Steps between watch steps, which record all probes. The loss is recorded at every step."""
    eval_batches: Count
    """Size of the fixed validation set, in batches of batch_size sequences."""
    eval_every: Count | None
    """Steps between validations during training. Null validates only before and after training."""
    eval_lengths: tuple[Count, ...]
    """Longer sequence lengths for a validation after training, in multiples of context. Positions continue past the
    context; constants that mixing rules derive from the context do not change, but for cosFormer's T and the capacity
    of experts."""
    plugins: str | None = None
    """Python file whose classes register further choices of any axis; several are joined by `:`. Commands append the
    hash of its content, which is hashed in place of its path."""

    @model_validator(mode="after")
    def _settings_go_together(self) -> Config:
        if self.finding is not None and self.finding not in experiments():
            raise ValueError(f"finding={self.finding} is not known: {near(self.finding, list(experiments()))}")
        if self.init_from is not None and not names.is_run(self.init_from):
            raise ValueError(
                f"init_from={self.init_from} is no run folder, whose name ends with a hash: see python -m train.runs"
            )
        if self.parametrization.scales_with_width and not self.optimizer.width_as_adam:
            raise ValueError(
                f"parametrization={self.parametrization.name} scales learning rates with width as Adam's updates need "
                f"it, but those of optimizer={self.optimizer.name} scale otherwise: use optimizer=adamw or "
                f"parametrization=standard"
            )
        self.schedule.fits(steps=self.steps, peak=self.optimizer.lr)
        fsdp.fits(self)
        recompute.fits(self)
        shares = self.accumulate * (self.devices or 1) * self.nodes
        if self.batch_size % shares:
            raise ValueError(
                f"batch_size={self.batch_size} can't be divided among accumulate={self.accumulate} x "
                f"devices={self.devices or 1} x nodes={self.nodes}: use a multiple of {shares}"
            )
        if self.watch.sharpness and shares > self.accumulate:
            raise ValueError(
                f"watch.sharpness=true compares losses on one device, but devices={self.devices or 1} "
                f"nodes={self.nodes}: use watch.sharpness=false, or devices=1 nodes=1"
            )
        if self.watch.mean_mode and self.compile:
            raise ValueError(
                "watch.mean_mode=true reads gradients between the layers, which compile=true fuses: "
                "use watch.mean_mode=false or compile=false"
            )
        length = self.data.sequence
        if length is not None and length != self.context:
            other = f" or data.length={self.context}" if hasattr(self.data, "length") else ""
            raise ValueError(
                f"context={self.context} cuts the sequences of data={self.data.name}, which have {length} tokens: use "
                f"context={length}{other}"
            )
        if length is not None and self.eval_lengths:
            raise ValueError(
                f"eval_lengths={list(self.eval_lengths)} joins sequences of data={self.data.name}, which have nothing "
                f"to do with each other: use eval_lengths=[] or another data"
            )
        longest = max(self.eval_lengths, default=1)
        if longest > 1 and not self.qk_source.endless:
            raise ValueError(
                f"eval_lengths={list(self.eval_lengths)} goes beyond the context={self.context} tokens that "
                f"qk_source={self.qk_source.name} has: use eval_lengths=[] or qk_source=stream"
            )
        if longest > 1 and not self.position.endless:
            raise ValueError(
                f"eval_lengths={list(self.eval_lengths)} goes beyond the context={self.context} positions that "
                f"position={self.position.name} has: use position=rope, alibi or none"
            )
        for rule in self.attention.of_blocks(self.model.depth):
            if longest > 1 and not rule.endless:
                raise ValueError(
                    f"eval_lengths={list(self.eval_lengths)} goes beyond the context={self.context} tokens that "
                    f"attention={rule.name} has parameters for: use eval_lengths=[] or attention=softmax"
                )
        if len(set(self.eval_lengths)) < len(self.eval_lengths):
            raise ValueError(f"eval_lengths={list(self.eval_lengths)} has a length twice: name each once")
        return self

    def values(self) -> dict[str, Any]:
        """Returns the config as plain values, as in config.yaml."""
        return asdict(self)

    @property
    def folder(self) -> Path:
        """Returns `out` as a path. Raises ConfigError if it begins with ~ and the user has no home folder."""
        return expanded(self.out, "out")

    @property
    def token_folder(self) -> Path:
        """Returns `cache` as a path. Raises ConfigError like `folder`."""
        return expanded(self.cache, "cache")

    @classmethod
    def fields_of_hash(cls) -> list[str]:
        """Returns the names of the fields that enter the hash, in the order of the config."""
        return [field.name for field in fields(cls) if field.name not in Runtime.__dataclass_fields__]

    def digest(self) -> str:
        """Returns the first eight hex digits of a hash over all fields that determine the run's numbers."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        values = self.values()
        hashed = {name: values[name] for name in self.fields_of_hash()}
        if self.init_from is not None:
            hashed["init_from"] = names.hash_of(self.init_from)
        for path, absent in LATER_FIELDS.items():
            *parents, last = path.split(".")
            node = hashed
            for parent in parents:
                node = node[parent]
            if last in node and node[last] == absent:
                del node[last]
        if self.plugins is not None:  # Not the path, which differs between machines.
            hashed["plugins"] = PLUGIN_HASH.findall(self.plugins)
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:8]

    def run_name(self) -> str:
        """Returns the name of the run folder: `name`, or the readable name if it is null, followed by the hash."""
        return self._run_name

    @cached_property
    def _run_name(self) -> str:
        return f"{self.name or self.readable()}-{self.digest()}"

    def readable(self) -> str:
        """Returns the readable name, which lists the fields that are not default. See train.config.names."""
        return names.readable(self)
