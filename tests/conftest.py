"""Helpers that the tests share: config choices as conf/ has them, whole tiny configs, seeded random tensors."""

import copy
import os
import signal
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import pytest
import torch
from omegaconf import OmegaConf

from conf.axis import Axis, checked
from train.config.choices import CONF
from train.config.grid import Composer
from train.config.schema import Config

os.environ.pop("COLUMNS", None)  # Workers of pytest-xdist have one of 80; tables in pipes are as wide as asked.

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # In the background, where commands under test would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

T = TypeVar("T")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files first whose tests start processes and train: short files then fill the workers' last minute."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/train/"))


FEW_STEPS = ["optimizer.decay_times_steps=null"]
"""Gives runs of a few steps the paper's lambda of 1e-4: with 10 / steps, decay would be their largest update."""

TINY = [
    *FEW_STEPS, "data=synthetic", "data.vocab_size=32", "logger=none", "model.name=tiny", "model.width=16",
    "model.depth=1", "model.heads=2", "context=8", "batch_size=4", "steps=4",
]  # fmt: skip


# What a choice is refused without, where that is not the default.
NEEDS = {
    "placement=ngpt": ("norm=none", "qk_norm=none"),
    "optimizer=schedule_free": ("schedule=constant",),
    "optimizer.qk_clip=100": ("qk_norm=none",),
    "share_attention=2": ("model.depth=2",),
}


def complete(*overrides: str) -> tuple[str, ...]:
    """The overrides and what they need besides."""
    return (*overrides, *(need for o in overrides for need in NEEDS.get(o, ()) if need not in overrides))


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves ~ as it is, as for a user id that the system does not know, without HOME."""

    def as_it_is(path: str) -> str:
        return path

    monkeypatch.setattr("os.path.expanduser", as_it_is)


@cache
def composer() -> Composer:
    """One for all tests: Hydra's composition takes a fifth of a second."""
    return Composer()


@cache
def tiny(*overrides: str) -> Config:
    """The checked config of a run of four steps of a model of width 16."""
    return composer().config([*TINY, *overrides])


def yaml_values(group: str, name: str) -> dict[str, Any]:
    """What conf/<group>/<name>.yaml says, read as Hydra reads it."""
    return copy.deepcopy(_read(group, name))


@cache
def _read(group: str, name: str) -> dict[str, Any]:
    """Kept, because thousands of tests read the same files."""
    values = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    assert isinstance(values, dict)
    return {str(k): v for k, v in values.items()}


def choice(axis: Axis[T], name: str, **changes: Any) -> T:
    """The choice of an axis with the values of its YAML file, some of them changed."""
    return checked(axis.choices[name], yaml_values(axis.title, name) | changes)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def largest_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """Over all tensors of two dicts with the same names; infinite where shapes or names differ."""
    if a.keys() != b.keys() or any(a[k].shape != b[k].shape for k in a):
        return float("inf")
    return max((float((a[k] - b[k]).detach().abs().max()) for k in a), default=0.0)
