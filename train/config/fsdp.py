"""Refuses configs that `strategy=fsdp` can't train, or that tests/train/run/test_sharding.py doesn't cover.

Forward and backward passes see full tensors, so nearly all choices work. A choice that needs full weights or gradients
elsewhere declares `shards = False`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from conf.axis import axes, chosen

if TYPE_CHECKING:
    from train.config.schema import Config

NAMED = 4
"""Most choices that an error message suggests."""


def fits(config: Config) -> None:
    """Raises ValueError, naming both settings and what would work, if the config can't train with strategy=fsdp."""
    if config.strategy != "fsdp":
        return
    if (config.devices or 1) * config.nodes == 1:
        raise ValueError(
            "strategy=fsdp shards a model over devices, but devices=1 nodes=1 is a single one: "
            "use devices=2 or more, or strategy=auto"
        )
    if config.accelerator == "mps":
        raise ValueError("strategy=fsdp shards a model over devices, but accelerator=mps is a single one: use cuda")
    if config.compile:
        raise ValueError("strategy=fsdp is not tested with compile=true: use compile=false or strategy=ddp")
    for setting, instead in _clashes(config):
        raise ValueError(f"strategy=fsdp shards tensors that {setting} needs in full: use {instead}, or strategy=ddp")


def _clashes(config: Config) -> Iterator[tuple[str, str]]:
    """Yields each setting that needs full tensors, and a setting that works instead."""
    for axis, choice in chosen(config):
        if not choice.shards:
            others = [name for name, other in axes(type(config))[axis].choices.items() if other.shards]
            yield f"{axis}={choice.name}", f"{axis}={' or '.join(others[:NAMED])}"
    if config.optimizer.qk_clip is not None:
        yield f"optimizer.qk_clip={config.optimizer.qk_clip:g}", "optimizer.qk_clip=null"
